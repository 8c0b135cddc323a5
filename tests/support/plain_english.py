"""Find words and sentence patterns that the project's style does not allow.

`python -m tests.support.plain_english PATH...` lists every finding in these files and folders, with a better
form. Without a path it reads the whole project.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests import ROOT

#: Words that no text contains, as patterns that match whole words in any case, and what to write instead.
WORDS = {
    r"so (many|much)": "name the quantity: “this many seconds”, “the maximum number of …”",
    r"who(so)?ever": "name the actor: “a client that …”, “anyone who …”",
    r"who (asks|calls|submits|waits|watches)": "name the actor: “the client”, “the submitter”, “a long poll”",
    r"anew": "“again”, “restart” or “recreate”",
    r"for (good|ever)": "“permanently” or “forever”",
    r"com(e|es|ing) along|came along": "“bundled” or “embedded”",
    r"told|tells?|telling": "“return”, “report”, “respond”, “show”, “notify”; name who acts",
    r"answer(s|ed|ing)?": "“response”, “respond” or “return”",
    r"(has|have|had) to be": "“must be”",
    r"in hand": "“current”, “in progress”",
    r"of chance": "“random”",
    r"(run|runs|ran|running) out": "“expire”, “end”, “use up”",
    r"(is|are|was|were) (all )?over": "“has ended”, “has expired”",
    r"(be|been|is|are|was|were) heard|heard (of|from)": "“sends a heartbeat”, “contacts the broker”",
    r"to be had": "“is available”",
    r"tak(e|es|en|ing) .{0,20}?for (dead|lost|its word)": "“treat as”, “consider”",
    r"park(s|ed|ing)?": "“waiting request”, “long poll”",
    r"copy of the database": "“standby” or “replica”",
    r"nought|hence|henceforth|thereby|therein|thereof|whereof|whereby|lest|albeit|upon|till": (
        "use an everyday word"
    ),
}

#: Sentences that begin like this, unless they are questions, and what to write instead.
SENTENCES = {
    r"Of (?!course\b)": "begin with the subject: “Nothing is logged for …”",
    r"(What|Who|Whose|Whom) ": "begin with a noun: “Tasks that …”, “A client that …”",
}

#: First lines of docstrings that begin like this, and what to write instead.
FIRST_LINES = {
    r"(What|Whether|Whose|Who|Whom|How|That|Where|When|Why)\b": "begin with a verb: “Return …”, “Check …”",
}

#: Identifiers that say nothing about what they hold.
NAMES = {"answer", "answered", "answers", "form", "found", "much", "take", "there", "told", "whoever"}

#: Patterns that no test name matches, and what to do instead.
TEST_NAMES = {
    r"\Atest_(of|what|who|whoever|whose|that|how|whether)_": "begin with the subject of the promise",
    r"\A.*_(told|tells|tell|anew|whoever|answer|answers|answered|heard|parked|parks|much|aught)(_|$)": (
        "use the standard terms: response, returns, reports, waits"
    ),
}

#: Words. The style asks for fewer than 25; a list of names may need some more.
LONGEST_SENTENCE = 30

_SUFFIXES = {".conf", ".css", ".html", ".ini", ".js", ".json", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}
_NAMES_OF_FILES = {"Containerfile", "Makefile", "run"}
# Text of other people, files that programs generate, and examples of bad text.
_EXCLUDED = (
    "tests/support/plain_english.py",
    "tests/test_style.py",
    "src/broker/web/dashboard/vendor/",
    "src/broker/web/docs/",
    "src/broker/web/help/",
)
_CODE = re.compile(r"```.*?```|<!--.*?-->|`[^`\n]*`", re.DOTALL)


class Finding(NamedTuple):
    """A place that the style does not allow."""

    path: Path
    line: int
    text: str
    better: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text!r}: {self.better}"


class _Text(NamedTuple):
    line: int
    kind: str
    text: str


def findings(path: Path) -> Iterator[Finding]:
    """Find what the style does not allow in a file.

    Args:
        path: A Python module, a Markdown page, or any other text file.

    Yields:
        The findings.
    """
    for line, kind, text in _texts(path):
        if kind == "name":
            if text in NAMES:
                yield Finding(path, line, text, "name what it holds")
            if text.startswith("test_"):
                yield from _matches(path, line, text, TEST_NAMES, "{}")
            continue
        yield from _matches(path, line, text, WORDS, r"(?i)\b({})\b")
        if kind == "docstring":
            yield from _matches(path, line, text, FIRST_LINES, r"\A{}")
        if kind in {"docstring", "comment", "prose"}:
            yield from _matches(path, line, text, SENTENCES, r"(?:\A|(?<=[.!?:] ))({})(?![^.!?]*\?)")


def long_sentences(path: Path) -> Iterator[Finding]:
    """Find the sentences of a Markdown page that have more than `LONGEST_SENTENCE` words.

    Args:
        path: The page. Tables, headings and code do not count.
    """
    for line, _, text in _texts(path):
        for block in re.split(r"\n(?=[-|#]|\d+\.)", text):
            if block.startswith(("|", "#")):
                continue
            prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split()))
            for sentence in re.split(r"(?<=[.!?:]) ", prose):
                if (words := len(sentence.split())) > LONGEST_SENTENCE:
                    yield Finding(path, line, sentence[:80], f"{words} words: make it two sentences")


def _matches(path: Path, line: int, text: str, patterns: dict[str, str], whole: str) -> Iterator[Finding]:
    for pattern, better in patterns.items():
        for match in re.finditer(whole.replace("{}", f"(?:{pattern})"), text):
            at = line + text.count("\n", 0, match.start())
            excerpt = " ".join(text[match.start() : match.end() + 30].split())
            yield Finding(path, at, excerpt, better)


def _texts(path: Path) -> Iterator[_Text]:
    content = path.read_text()
    if path.suffix == ".py":
        yield from _python_texts(content)
    elif path.suffix == ".md":
        prose = _CODE.sub(lambda code: "`" + "\n" * code[0].count("\n") + "`", content)
        for block in re.finditer(r"(?:.+\n?)+", prose):
            yield _Text(1 + prose.count("\n", 0, block.start()), "prose", block[0])
    else:
        yield _Text(1, "text", content)


def _python_texts(content: str) -> Iterator[_Text]:
    docstrings = set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                yield _Text(node.lineno, "name", node.name)
            if ast.get_docstring(node, clean=False) is not None:
                [docstring] = [node.body[0].value]  # type: ignore[attr-defined]
                docstrings.add(docstring)
                yield _Text(docstring.lineno, "docstring", docstring.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield _Text(node.lineno, "string", node.value)
        elif isinstance(node, ast.arg):
            yield _Text(node.lineno, "name", node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield _Text(node.lineno, "name", node.id)
    yield from _comments(content)


def _comments(content: str) -> Iterator[_Text]:
    """Yield each block of comment lines as one text."""
    block: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != first + len(block):
                yield _Text(first, "comment", "\n".join(block))
                block = []
            if not block:
                first = token.start[0]
            block.append(token.string.lstrip("#: "))
    if block:
        yield _Text(first, "comment", "\n".join(block))


def files(*roots: Path) -> list[Path]:
    """Return the text files of the project under some paths.

    Args:
        roots: Files and folders. Without any, the function returns every file that Git knows.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *map(str, roots)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [
        ROOT / name
        for name in listed
        if not name.startswith(_EXCLUDED)
        and (Path(name).suffix in _SUFFIXES or Path(name).name in _NAMES_OF_FILES)
        and (ROOT / name).exists()
    ]


def main() -> int:
    """List the findings in the paths of the command line."""
    every = [finding for path in files(*map(Path, sys.argv[1:])) for finding in findings(path)]
    sys.stdout.writelines(f"{finding}\n" for finding in every)
    return 1 if every else 0


if __name__ == "__main__":
    sys.exit(main())
