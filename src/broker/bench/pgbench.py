r"""Measure the limit for SQL: pgbench runs the same statements as the service, and nothing else.

The parameters of the statements (`:name`) are also variables of pgbench. A query before the statement sets
them (`\gset`). As in the service, each statement is a separate transaction.
"""

import asyncio
import json
import os
import re

from broker.bench.database import execute
from broker.bench.http import BenchError
from broker.bench.stage import Stage
from broker.bench.work import NEEDS, task
from broker.schemas.limits import MOST_ON_PAGE
from broker.store import assignment, candidates, completion, submission, work
from broker.store.connections import SETTINGS

_TPS = re.compile(r"tps = ([0-9.]+)")

# The service reads a page of candidates and one more candidate.
_CANDIDATES = MOST_ON_PAGE + 1

# The statements of the service.
_SUBMIT = submission.SUBMIT.text
_NEW = candidates.NEW.text
_ASSIGN = assignment.ASSIGN.text
_ASSIGN_BRIEFLY = assignment.ASSIGN_BRIEFLY.text
_ASSIGNED_TO = work.ASSIGNED_TO.text
_END = completion.END_SUCCESSES.text
_END_BRIEFLY = completion.END_SUCCESSES_BRIEFLY.text

# One tool for each pgbench client, with capacity for all tasks of a statement.
_SETUP = """
insert into tools (id, skills, capacity)
select 'tool-' || number, '{}', 10000 from generate_series(0, 63) as number;
insert into tool_leases (tool_id, lease_seconds, expires_at)
select id, 3600, now() + interval '1 hour' from tools;
"""


def submitting(number: int) -> str:
    """Return the script that submits a number of tasks in one statement."""
    return _arguments(number) + _statement(_SUBMIT)


def life_cycle(number: int) -> str:
    """Return the script that runs the life cycle of a number of tasks with the statements of the service."""
    is_single = number == 1
    steps = [
        _arguments(number),
        # The assigner's cursor.
        _gset("select cast(pg_current_snapshot() as text) as seen", number),
        _gset(
            f"with submitted as ({_bare(_SUBMIT)}) select cast(array_agg(id) as text) as id from submitted",
            number,
        ),
        f"\\set limit {_CANDIDATES}\n",
        _statement(_NEW),
        _gset(
            """
            select cast(array_fill(concat('tool-', cast(:client_id as text)), array[{number}]) as text)
                       as tool_ids,
                   cast(:id as text) as task_ids""",
            number,
        ),
        _statement(_ASSIGN if is_single else _ASSIGN_BRIEFLY),
        _statement(_ASSIGNED_TO),
        # The tool's completion.
        _gset(
            """
            select cast(array_agg(id) as text) as work_id,
                   cast(array_agg(cast('succeeded' as text)) as text) as outcome,
                   cast(array_agg(cast('1' as json)) as text) as result,
                   cast(array_fill(cast(null as text), array[{number}]) as text) as error,
                   cast(array_agg(true) as text) as retry
            from work
            where task_id = any(cast(:id as text[]))""",
            number,
        ),
        _statement(_END if is_single else _END_BRIEFLY),
    ]
    return "".join(steps)


async def run(stage: Stage, script: str, *, clients: int, seconds: float) -> float:
    """Run a script on an empty database, and return the rate of all clients together, per second.

    Raises:
        BenchError: pgbench failed.
    """
    async with stage.database() as url:
        await execute(url, _SETUP)
        load = ["-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds)))]
        output = await _pgbench(stage, script, "-n", "-M", "prepared", *load, "-f", "-", url)
    return tps(output)


def tps(output: str) -> float:
    """Return the transactions per second from the output of pgbench; raise BenchError if it has none."""
    match = _TPS.search(output)
    if match is None:
        raise BenchError(f"pgbench failed: {output[-2000:]}")
    return float(match[1])


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


def _gset(query: str, number: int) -> str:
    return " ".join(query.format(number=number).split()) + " \\gset\n"


def _bare(statement: str) -> str:
    """Remove comments, whose colons pgbench would read as variables."""
    return re.sub(r"--.*", "", statement).strip()


def _arguments(number: int) -> str:
    """Return a query that sets the parameters that the service would pass for tasks."""
    # With a space after each colon: `:1` would be a variable.
    needs, payload = (
        json.dumps(value).replace("{", "{{").replace("}", "}}") for value in (NEEDS, task(1)["payload"])
    )
    query = f"""
        select cast(array_agg(cast(uuid7() as text)) as text) as id,
               cast(array_agg(cast('{needs}' as jsonb)) as text) as needs,
               cast(array_agg(cast('{payload}' as json)) as text) as payload,
               cast(array_agg(0) as text) as priority,
               cast(array_fill(cast(null as text), array[{{number}}]) as text) as not_before,
               cast(array_fill(cast(null as text), array[{{number}}]) as text) as timeout_seconds,
               cast(array_agg(3) as text) as max_attempts,
               cast(array_agg(1.0) as text) as retry_backoff_seconds
        from generate_series(1, {{number}})"""
    return _gset(query, number)
