"""Check that a service does not grow, even if it runs for a long time with many faults."""

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
# Twice the connections of a broker: after a failure, the server may keep each old connection for a while.
CONNECTIONS_OF_A_BROKER = 18
# Autovacuum starts at 5,000 in a table and checks every ten seconds. A promoted standby counts from zero.
MOST_DEAD_TUPLES = 200_000
MOST_MIB = 20
MOST_GROWTH = 1.15


class Sample(NamedTuple):
    """The measurements at one moment.

    Args:
        memory_mib: The memory of the broker that never ends.
        files: The number of its open files.
        dead_tuples: The number of dead tuples in the hot tables, as PostgreSQL counts them.
        tables_mib: The size of the hot tables and their indexes.
        connections: The number of connections of all brokers to the database.
        partitions: The number of partitions of the archive.
    """

    memory_mib: float
    files: float
    dead_tuples: float
    tables_mib: float
    connections: float
    partitions: float


class Finding(NamedTuple):
    """A measured figure, compared with its limit."""

    name: str
    measured: str
    expected: str
    good: bool


@dataclass
class Watch:
    """Collects samples of a broker and its database.

    Args:
        laboratory: The laboratory.
        broker: The broker that never ends.
        samples: The samples so far.
    """

    laboratory: Laboratory
    broker: Service
    samples: list[Sample] = field(default_factory=list)

    async def take_sample(self) -> Sample:
        connection = await Address(self.laboratory.database).connect()
        try:
            row = await connection.fetchrow(DATABASE)
        finally:
            await connection.close()
        assert row is not None
        pid = self.broker.pid
        sample = Sample(process.memory(pid) / 2**20, _open_files(pid), *map(_number, row))
        self.samples.append(sample)
        return sample

    def findings(self) -> list[Finding]:
        """Return the findings of all samples, except those of the first tenth, while the service warms up."""
        warm = self.samples[len(self.samples) // 10 :]
        third = max(1, len(warm) // 3)
        begin, end = _typical(warm[:third]), _typical(warm[-third:])
        most = Sample(*map(max, zip(*warm, strict=True)))
        allowed = CONNECTIONS_OF_A_BROKER * len(self.laboratory.brokers)
        return [
            _grown("memory of the broker that never ended, MiB", begin.memory_mib, end.memory_mib),
            _grown("open files of that broker", begin.files, end.files),
            _at_most("size of the hot tables and their indexes, MiB", most.tables_mib, MOST_MIB),
            _at_most("dead tuples in the hot tables", most.dead_tuples, MOST_DEAD_TUPLES),
            _at_most("connections to the database", most.connections, allowed),
            _grown("partitions of the archive", begin.partitions, end.partitions, by=1),
        ]


def _number(value: object) -> float:
    return float(value or 0)  # type: ignore[arg-type]


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _typical(samples: Sequence[Sample]) -> Sample:
    return Sample(*map(statistics.median, zip(*samples, strict=True)))


def _grown(name: str, before: float, after: float, *, by: float = MOST_GROWTH) -> Finding:
    expected = f"at most × {by:g}"
    return Finding(name, f"{before:,.0f} → {after:,.0f}", expected, after <= by * before)


def _at_most(name: str, measured: float, limit: float) -> Finding:
    return Finding(name, f"{measured:,.0f}", f"at most {limit:,.0f}", measured <= limit)
