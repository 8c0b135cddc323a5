"""Faults that can hit a laboratory at any moment. Each function causes one, and undoes it if necessary."""

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
# The tables that the life cycle writes to, and errors of PostgreSQL that no client causes: the disk is full,
# memory is exhausted, the disk fails, a lock is not available, a privilege is missing.
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
# Pages that proxies send when they cannot or must not reach the service behind them.
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
SUSPENDED_SECONDS = 7
SILENT_SECONDS = 4


class Scene(NamedTuple):
    """The targets of faults.

    Args:
        laboratory: The laboratory.
        pair: Its databases.
        broker: The broker that faults may end. The others keep running.
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


async def a_broker_is_stopped(scene: Scene) -> None:
    assert await scene.broker.terminate() == 0
    scene.broker.start()


async def a_tool_is_killed(scene: Scene) -> None:
    tool = scene.a_tool()
    await tool.kill()
    tool.start()


async def a_tool_is_stopped(scene: Scene) -> None:
    tool = scene.a_tool()
    assert await tool.terminate() == 0
    tool.start()


async def a_tool_is_suspended(scene: Scene) -> None:
    tool = scene.a_tool()
    os.kill(tool.pid, signal.SIGSTOP)
    await asyncio.sleep(SUSPENDED_SECONDS)
    os.kill(tool.pid, signal.SIGCONT)


async def the_assigner_is_killed(scene: Scene) -> None:
    await scene.laboratory.assigner.kill()
    scene.laboratory.assigner.start()


async def the_listeners_are_ended(scene: Scene) -> None:
    await asyncio.to_thread(scene.pair.primary.sql, END_LISTENERS)


async def a_backend_is_ended(scene: Scene) -> None:
    await asyncio.to_thread(scene.pair.primary.sql, END_BACKEND)


async def a_backend_crashes(scene: Scene) -> None:
    """Kill a backend, after which PostgreSQL ends all other backends, too."""
    if pid := await asyncio.to_thread(scene.pair.primary.sql, BACKENDS):
        os.kill(int(pid), signal.SIGKILL)


async def the_database_is_killed(scene: Scene) -> None:
    await scene.pair.primary.kill()
    await scene.pair.primary.start()


async def the_network_is_silent(scene: Scene) -> None:
    for proxy in scene.pair.proxies:
        proxy.silence()
    await asyncio.sleep(SILENT_SECONDS)
    for proxy in scene.pair.proxies:
        proxy.restore()


async def the_network_is_cut(scene: Scene) -> None:
    for proxy in scene.pair.proxies:
        await proxy.cut()


async def the_standby_takes_over(scene: Scene) -> None:
    await scene.pair.fail_over()


async def the_standby_takes_over_from_an_unreachable_primary(scene: Scene) -> None:
    proxy = scene.pair.proxy_to_primary()
    proxy.silence()
    await scene.pair.fail_over()
    await asyncio.sleep(SILENT_SECONDS)
    proxy.restore()


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
    """Let a gateway respond to every request with its own page for some seconds."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(text)}\r\n"
    await gateway.respond_with(f"{head}Connection: close\r\n\r\n{text}".encode())
    await asyncio.sleep(PAGES_SECONDS)
    gateway.forward_again()


PROCESS_FAULTS: tuple[Fault, ...] = (
    a_broker_is_killed,
    a_broker_is_stopped,
    a_tool_is_killed,
    a_tool_is_stopped,
    a_tool_is_suspended,
    the_assigner_is_killed,
    a_gateway_responds_by_itself,
)
DATABASE_FAULTS: tuple[Fault, ...] = (
    the_listeners_are_ended,
    a_backend_is_ended,
    a_backend_crashes,
    postgresql_raises_errors,
    the_database_is_killed,
    the_network_is_silent,
    the_network_is_cut,
    the_standby_takes_over,
    the_standby_takes_over_from_an_unreachable_primary,
)


def name_of(fault: Fault) -> str:
    """Return the name of a fault in words."""
    return fault.__name__.replace("_", " ")  # type: ignore[attr-defined]
