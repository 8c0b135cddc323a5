r"""The ceiling for SQL: pgbench runs the very statements that the service runs, and nothing else.

The binds of our statements (`:name`) are pgbench's variables, too, so they are taken as they are; what the
service would pass, a query makes beforehand (`\gset`). As there, each statement is a transaction of its own.
"""

import asyncio
import json
import os
import re

from broker.bench.http import BenchError
from broker.bench.stage import Stage, execute
from broker.bench.work import NEEDS, task
from broker.store import assignment, candidates, completion, tasks, work
from broker.store.connections import SETTINGS

_TPS = re.compile(r"tps = ([0-9.]+)")

# As many candidates as the service reads at a time, and one more, as it does.
_PAGE = 1_001

# One tool for each pgbench client, with room for a whole set.
_SETUP = """
insert into tools (id, skills, capacity)
select 'tool-' || number, '{}', 10000 from generate_series(0, 63) as number;
insert into tool_leases (tool_id, lease_seconds, expires_at)
select id, 3600, now() + interval '1 hour' from tools;
"""


def submitting(many: int) -> str:
    """The script that submits so many tasks as a set."""
    return _arguments(many) + _statement(tasks.SUBMIT.text)


def life_cycle(many: int) -> str:
    """The script that takes so many tasks through their lives, by the statements of the service."""
    alone = many == 1
    steps = [
        _arguments(many),
        # What the assigner has seen before.
        _gset("select cast(pg_current_snapshot() as text) as seen", many),
        _statement((tasks.SUBMIT if alone else tasks.SUBMIT_BRIEFLY).text),
        f"\\set limit {_PAGE}\n",
        _gset(candidates.SNAPSHOT.text, many),
        _statement(candidates.NEW_TASKS.text),
        _statement(candidates.NEW_TOOLS.text),
        _gset(
            """
            select cast(array_fill(concat('tool-', cast(:client_id as text)), array[{many}]) as text)
                       as tool_ids,
                   cast(:id as text) as task_ids""",
            many,
        ),
        _statement((assignment.ASSIGN if alone else assignment.ASSIGN_BRIEFLY).text),
        _statement(work.ASSIGNED_TO.text),
        # What the tool says of it.
        _gset(
            """
            select cast(array_agg(id) as text) as work_id,
                   cast(array_agg(cast('succeeded' as text)) as text) as outcome,
                   cast(array_agg(cast('1' as json)) as text) as result,
                   cast(array_fill(cast(null as text), array[{many}]) as text) as error,
                   cast(array_agg(true) as text) as retry
            from work
            where task_id = any(cast(:id as text[]))""",
            many,
        ),
        _statement((completion.END if alone else completion.END_BRIEFLY).text),
    ]
    return "".join(steps)


async def run(stage: Stage, script: str, *, clients: int, seconds: float) -> float:
    """How often a second a script runs, on an empty database.

    Args:
        stage: Where.
        script: What.
        clients: How many at a time.
        seconds: How long.

    Raises:
        BenchError: pgbench failed.
    """
    async with stage.database() as url:
        await execute(url, _SETUP)
        load = ["-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds)))]
        output = await _pgbench(stage, script, "-n", "-M", "prepared", *load, "-f", "-", url)
    return tps(output)


def tps(output: str) -> float:
    """The transactions per second that pgbench tells of.

    Raises:
        BenchError: It tells of none.
    """
    found = _TPS.search(output)
    if found is None:
        raise BenchError(f"pgbench failed: {output[-2000:]}")
    return float(found[1])


async def _pgbench(stage: Stage, script: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        stage.pgbench,
        *arguments,
        env=os.environ | {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate(script.encode())
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode:
        raise BenchError(f"pgbench failed: {output.decode()[-2000:]}")
    return output.decode()


def _statement(statement: str) -> str:
    return f"{_bare(statement)};\n"


def _gset(query: str, many: int) -> str:
    return " ".join(query.format(many=many).split()) + " \\gset\n"


def _bare(statement: str) -> str:
    """Without comments: pgbench would take their colons for variables."""
    return re.sub(r"--.*", "", statement).strip()


def _arguments(many: int) -> str:
    """What the service passes for tasks, made by the database."""
    # With a space after each colon: `:1` would be a variable.
    needs, payload = (
        json.dumps(each).replace("{", "{{").replace("}", "}}") for each in (NEEDS, task(1)["payload"])
    )
    query = f"""
        select cast(array_agg(cast(uuid7() as text)) as text) as id,
               cast(array_agg(cast('{needs}' as jsonb)) as text) as needs,
               cast(array_agg(cast('{payload}' as json)) as text) as payload,
               cast(array_agg(0) as text) as priority,
               cast(array_fill(cast(null as text), array[{{many}}]) as text) as not_before,
               cast(array_fill(cast(null as text), array[{{many}}]) as text) as timeout_seconds,
               cast(array_agg(3) as text) as max_attempts,
               cast(array_agg(1.0) as text) as retry_backoff_seconds
        from generate_series(1, {{many}})"""
    return _gset(query, many)
