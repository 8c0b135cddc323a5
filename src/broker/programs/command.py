"""Find the program of a command, and check that it can run, before the tool accepts work."""

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from broker.programs.errors import CannotRunError

# The part of a file from which the kernel recognizes its format.
_HEAD_BYTES = 256


def resolve(command: Sequence[str]) -> list[str]:
    """Return a command with the absolute path of its program, so that PATH and the folder may change later.

    Raises:
        CannotRunError: The program does not exist, or cannot run.
    """
    name, *arguments = command
    if (path_found := shutil.which(name)) is None:
        raise CannotRunError(_why_not(name))
    # Keep symbolic links: a program may use its name, as the Python of a virtual environment does.
    path = Path(path_found).absolute()
    check(path)
    return [str(path), *arguments]


def check(path: Path) -> None:
    """Check that a program can run; raise CannotRunError if it cannot."""
    if not os.access(path, os.X_OK) or path.is_dir():
        raise CannotRunError(_why_not(str(path)))
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return  # a program may be executable and not readable
    if head.startswith(b"#!"):
        _check_interpreter(path, head)
    elif b"\0" not in head:
        # A binary has zeros at its beginning.
        raise CannotRunError(
            f"{path} is a script without an interpreter. Add a first line such as #!/bin/sh."
        )


def _why_not(name: str) -> str:
    """Return why a program cannot run."""
    path, quoted = Path(name), shlex.quote(name)
    if "/" not in name:
        hint = f" Did you mean ./{quoted}?" if name and path.is_file() else ""
        return f"There is no program {quoted} in the folders of PATH.{hint}"
    if path.is_dir():
        return f"{quoted} is a folder, not a program."
    if path.exists():
        return f"{quoted} is not executable. If it is a program, run: chmod +x {quoted}"
    return f"There is no program {quoted}" + ("." if path.is_absolute() else f" in {Path.cwd()}.")


def _check_interpreter(path: Path, head: bytes) -> None:
    line = head.partition(b"\n")[0].removeprefix(b"#!")
    if line.endswith(b"\r"):
        raise CannotRunError(
            f"{path} has Windows line ends, which a script cannot have. Convert it: dos2unix {path}"
        )
    words = line.split()
    interpreter = os.fsdecode(words[0]) if words else ""
    if not os.access(interpreter, os.X_OK):
        raise CannotRunError(
            f"{path} names the interpreter {interpreter!r} in its first line, which does not exist or cannot"
            " run."
        )
