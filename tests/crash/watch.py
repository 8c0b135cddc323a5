"""What a service must not do, however long it runs and whatever happens to it: grow."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from broker.bench import process
from broker.store.address import Address
from tests.crash.laboratory import Laboratory, Service

HOT_TABLES = "('tasks', 'work', 'work_reports', 'tools', 'tool_leases')"
DATABASE = f"""
select (select sum(n_dead_tup) from pg_stat_user_tables where relname in {HOT_TABLES}),
       (select sum(pg_total_relation_size(oid)) from pg_class where relname in {HOT_TABLES}) / 2 ^ 20,
       (select count(*) from pg_stat_activity where application_name like 'broker%'),
       (select count(*) from pg_inherits where inhparent = 'work_archive'::regclass)
"""
# A broker's pool, its listener, and one that the kernel has not yet found dead for each of them.
CONNECTIONS_OF_A_BROKER = 18
# Autovacuum begins at 5,000 in a table, and looks every ten seconds; a standby that takes over counts anew.
MOST_DEAD_TUPLES = 200_000
MOST_MIB = 20
MOST_GROWTH = 1.15


class Sample(NamedTuple):
    """What was seen at one moment.

    Args:
        memory_mib: Of the broker that is never ended.
        files: How many it has open.
        dead_tuples: In the hot tables, as PostgreSQL counts them.
        tables_mib: The hot tables and their indexes.
        connections: Of all brokers to the database.
        partitions: Of the archive.
    """

    memory_mib: float
    files: float
    dead_tuples: float
    tables_mib: float
    connections: float
    partitions: float


class Finding(NamedTuple):
    """A figure, what it had to be, and whether it was."""

    what: str
    found: str
    wanted: str
    good: bool


@dataclass
class Watch:
    """Looks at a broker and at its database again and again.

    Args:
        laboratory: Where they are.
        broker: The broker that is never ended.
    """

    laboratory: Laboratory
    broker: Service
    samples: list[Sample] = field(default_factory=list)

    async def look(self) -> Sample:
        connection = await Address(self.laboratory.database).connect()
        try:
            found = await connection.fetchrow(DATABASE)
        finally:
            await connection.close()
        assert found is not None
        pid = self.broker.pid
        sample = Sample(process.memory(pid) / 2**20, _open_files(pid), *map(_number, found))
        self.samples.append(sample)
        return sample

    def findings(self) -> list[Finding]:
        """Of all samples; those of the first tenth are the service getting warm."""
        warm = self.samples[len(self.samples) // 10 :]
        third = max(1, len(warm) // 3)
        begin, end = _typical(warm[:third]), _typical(warm[-third:])
        most = Sample(*map(max, zip(*warm, strict=True)))
        allowed = CONNECTIONS_OF_A_BROKER * len(self.laboratory.brokers)
        return [
            _grown("memory of the broker that never ended, MiB", begin.memory_mib, end.memory_mib),
            _grown("its open files", begin.files, end.files),
            _at_most("hot tables and their indexes at most, MiB", most.tables_mib, MOST_MIB),
            _at_most("dead tuples in them at most", most.dead_tuples, MOST_DEAD_TUPLES),
            _at_most("connections to the database at most", most.connections, allowed),
            _grown("partitions of the archive", begin.partitions, end.partitions, by=1),
        ]


def _number(value: object) -> float:
    return float(value or 0)  # type: ignore[arg-type]


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _typical(samples: Sequence[Sample]) -> Sample:
    return Sample(*map(statistics.median, zip(*samples, strict=True)))


def _grown(what: str, before: float, after: float, *, by: float = MOST_GROWTH) -> Finding:
    wanted = f"at most × {by:g}"
    return Finding(what, f"{before:,.0f} → {after:,.0f}", wanted, after <= by * before)


def _at_most(what: str, found: float, limit: float) -> Finding:
    return Finding(what, f"{found:,.0f}", f"at most {limit:,.0f}", found <= limit)
