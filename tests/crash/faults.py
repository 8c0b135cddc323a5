"""What may happen to a laboratory at any moment, one fault a function; each is undone, or heals by itself."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.crash.laboratory import Laboratory, Process, Service
from tests.crash.pair import Pair
from tests.support.proxy import Gateway

BACKENDS = """
select pid from pg_stat_activity
where application_name = 'broker' and datname = current_database() and state <> 'idle' limit 1
"""
END_BACKEND = f"select pg_terminate_backend(pid) from ({BACKENDS}) b"
END_LISTENERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = 'broker listener' and datname = current_database()
"""
# The tables that the life cycle writes to, and errors of PostgreSQL that are no client's fault: the disk is
# full, memory is exhausted, the disk fails, a lock is not to be had, a privilege was revoked.
TABLES = ("tasks", "tools", "tool_leases", "work", "work_reports", "work_archive")
SQLSTATES = ("53100", "53200", "58030", "55P03", "42501")
RAISE_ERRORS = """
create function raise_error() returns trigger language plpgsql
as $$ begin raise exception 'an error that the test raises' using errcode = '{sqlstate}'; end $$;
create trigger raise_error before insert or update or delete on {table}
for each statement execute function raise_error();
"""
RAISE_NO_ERRORS = "drop function raise_error cascade"
# Shorter than a lease.
ERRORS_SECONDS = 3
# Pages that proxies send when they cannot, or may not, reach the service behind them.
PAGES = (
    ("404 Not Found", "text/plain", "404 page not found"),
    ("403 Forbidden", "text/html", "<html><body>Access denied by policy</body></html>"),
    ("401 Unauthorized", "text/html", "<html><body>Log in first</body></html>"),
    ("502 Bad Gateway", "text/html", "<html><body><h1>502 Bad Gateway</h1></body></html>"),
    ("503 Service Unavailable", "text/plain", "no healthy upstream"),
    ("200 OK", "text/html", "<html><body>Please log in</body></html>"),
    ("200 OK", "application/json", '{"status": "ok"}'),
)
PAGES_SECONDS = 4
# Longer than the lease of a tool, and longer than the database may be silent.
STANDS_STILL_SECONDS = 7
SILENT_SECONDS = 4


class Scene(NamedTuple):
    """Where it happens.

    Args:
        laboratory: What is shot at.
        pair: Its database.
        broker: The one of its brokers that may end.
    """

    laboratory: Laboratory
    pair: Pair
    broker: Service

    def a_tool(self) -> Process:
        return random.choice(self.laboratory.tools)


Fault = Callable[[Scene], Awaitable[None]]


async def a_broker_is_killed(scene: Scene) -> None:
    await scene.broker.kill()
    scene.broker.start()


async def a_broker_is_told_to_stop(scene: Scene) -> None:
    assert await scene.broker.terminate() == 0
    scene.broker.start()


async def a_tool_is_killed(scene: Scene) -> None:
    tool = scene.a_tool()
    await tool.kill()
    tool.start()


async def a_tool_is_told_to_stop(scene: Scene) -> None:
    tool = scene.a_tool()
    assert await tool.terminate() == 0
    tool.start()


async def a_tool_stands_still(scene: Scene) -> None:
    tool = scene.a_tool()
    os.kill(tool.pid, signal.SIGSTOP)
    await asyncio.sleep(STANDS_STILL_SECONDS)
    os.kill(tool.pid, signal.SIGCONT)


async def the_assigner_is_killed(scene: Scene) -> None:
    await scene.laboratory.assigner.kill()
    scene.laboratory.assigner.start()


async def the_listeners_are_ended(scene: Scene) -> None:
    await asyncio.to_thread(scene.pair.primary.sql, END_LISTENERS)


async def a_backend_is_ended(scene: Scene) -> None:
    await asyncio.to_thread(scene.pair.primary.sql, END_BACKEND)


async def a_backend_crashes(scene: Scene) -> None:
    """All others go with it."""
    if pid := await asyncio.to_thread(scene.pair.primary.sql, BACKENDS):
        os.kill(int(pid), signal.SIGKILL)


async def the_database_is_killed(scene: Scene) -> None:
    await scene.pair.primary.kill()
    await scene.pair.primary.start()


async def the_network_is_silent(scene: Scene) -> None:
    for way in scene.pair.ways:
        way.silence()
    await asyncio.sleep(SILENT_SECONDS)
    for way in scene.pair.ways:
        way.restore()


async def the_network_is_cut(scene: Scene) -> None:
    for way in scene.pair.ways:
        await way.cut()


async def the_standby_takes_over(scene: Scene) -> None:
    await scene.pair.fail_over()


async def the_standby_takes_over_from_one_that_is_cut_off(scene: Scene) -> None:
    way = scene.pair.way_to_primary()
    way.silence()
    await scene.pair.fail_over()
    await asyncio.sleep(SILENT_SECONDS)
    way.restore()


async def postgresql_raises_errors(scene: Scene) -> None:
    table, sqlstate = random.choice(TABLES), random.choice(SQLSTATES)
    sql = scene.pair.primary.sql
    await asyncio.to_thread(sql, RAISE_ERRORS.format(table=table, sqlstate=sqlstate))
    try:
        await asyncio.sleep(ERRORS_SECONDS)
    finally:
        await asyncio.to_thread(sql, RAISE_NO_ERRORS)


async def a_gateway_responds_by_itself(scene: Scene) -> None:
    await respond_by_itself(random.choice(scene.laboratory.gateways), *random.choice(PAGES))


async def respond_by_itself(gateway: Gateway, status: str, media_type: str, text: str) -> None:
    """Have a gateway send a page of its own to every request for some seconds."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(text)}\r\n"
    await gateway.respond_with(f"{head}Connection: close\r\n\r\n{text}".encode())
    await asyncio.sleep(PAGES_SECONDS)
    gateway.forward_again()


OF_PROCESSES: tuple[Fault, ...] = (
    a_broker_is_killed,
    a_broker_is_told_to_stop,
    a_tool_is_killed,
    a_tool_is_told_to_stop,
    a_tool_stands_still,
    the_assigner_is_killed,
    a_gateway_responds_by_itself,
)
OF_THE_DATABASE: tuple[Fault, ...] = (
    the_listeners_are_ended,
    a_backend_is_ended,
    a_backend_crashes,
    postgresql_raises_errors,
    the_database_is_killed,
    the_network_is_silent,
    the_network_is_cut,
    the_standby_takes_over,
    the_standby_takes_over_from_one_that_is_cut_off,
)


def name_of(fault: Fault) -> str:
    """In words."""
    return fault.__name__.replace("_", " ")  # type: ignore[attr-defined]
