"""PostgreSQL's error codes (SQLSTATEs), and the broker's error for each of them.

`CLASSES` has every class of appendix A of the PostgreSQL manual. `CODES` has the codes that differ from their
class. A code that is in neither indicates a defect of the broker: its error passes through and becomes a 500.
"""

from enum import Enum
from typing import NamedTuple

import asyncpg
from sqlalchemy.exc import (
    DBAPIError,
    EmulatedDBAPIException,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from broker.errors import (
    BadRequest,
    ConnectionLost,
    DatabaseTrouble,
    Locked,
    Overloaded,
    RowFailed,
    TooSlow,
    Unavailable,
)


class RetryTransaction(Unavailable):
    """PostgreSQL aborted this transaction because of another one. You can safely repeat the request."""


class Meaning(Enum):
    """The effect of an error code on the request."""

    VALUE = "400: PostgreSQL refuses a value of the request"
    RETRY = "another transaction was in the way, and the broker retries this one"
    LOST = "503: the connection is lost, and the broker considers the database unreachable"
    TROUBLE = "503: the database cannot work; the log and /health/ready name the cause"
    ROW = "503 for one item: a row may be the cause, so the broker splits the batch and finds the item"
    LOCKED = "503 for one item: a row stayed locked, so the broker splits the batch and finds the item"
    CANCELLED = "503: for one item if the statement timeout has passed; otherwise the log names the cause"
    DEFECT = "500: a defect of the broker"


class Entry(NamedTuple):
    """A line of the table: PostgreSQL's name of the class or code, and the cause for the log, if any."""

    name: str
    meaning: Meaning
    cause: str = ""


_VALUE, _RETRY, _LOST, _TROUBLE = Meaning.VALUE, Meaning.RETRY, Meaning.LOST, Meaning.TROUBLE
_ROW, _LOCKED, _CANCELLED, _DEFECT = Meaning.ROW, Meaning.LOCKED, Meaning.CANCELLED, Meaning.DEFECT
_POOLER = "a prepared statement is missing; behind a pooler, set BROKER_LISTEN_URL"
_SCHEMA = "the database's schema does not fit this version of the broker; run `broker migrate`"

CLASSES = {
    "00": Entry("successful completion", _DEFECT),
    "01": Entry("warning", _DEFECT),
    "02": Entry("no data", _DEFECT),
    "03": Entry("SQL statement not yet complete", _DEFECT),
    "08": Entry("connection exception", _LOST),
    "09": Entry("triggered action exception", _ROW, "a trigger in the database failed"),
    # PostgreSQL refuses a prepared statement with this code when a migration has changed a column.
    "0A": Entry("feature not supported", _RETRY),
    "0B": Entry("invalid transaction initiation", _DEFECT),
    "0F": Entry("locator exception", _DEFECT),
    "0L": Entry("invalid grantor", _TROUBLE, "the database user lacks a privilege"),
    "0P": Entry("invalid role specification", _TROUBLE, "the database user's role does not exist"),
    "0Z": Entry("diagnostics exception", _DEFECT),
    "10": Entry("XQuery error", _DEFECT),
    "20": Entry("case not found", _DEFECT),
    "21": Entry("cardinality violation", _DEFECT),
    "22": Entry("data exception", _VALUE),
    "23": Entry("integrity constraint violation", _DEFECT),
    "24": Entry("invalid cursor state", _DEFECT),
    "25": Entry("invalid transaction state", _DEFECT),
    "26": Entry("invalid SQL statement name", _TROUBLE, _POOLER),
    "27": Entry("triggered data change violation", _ROW, "a trigger in the database failed"),
    "28": Entry("invalid authorization specification", _TROUBLE, "the database rejects the user or password"),
    "2B": Entry("dependent privilege descriptors still exist", _DEFECT),
    "2D": Entry("invalid transaction termination", _DEFECT),
    "2F": Entry("SQL routine exception", _ROW, "a function in the database failed"),
    "34": Entry("invalid cursor name", _DEFECT),
    "38": Entry("external routine exception", _ROW, "a function in the database failed"),
    "39": Entry("external routine invocation exception", _ROW, "a function in the database failed"),
    "3B": Entry("savepoint exception", _DEFECT),
    "3D": Entry("invalid catalog name", _TROUBLE, "the database does not exist"),
    "3F": Entry("invalid schema name", _TROUBLE, _SCHEMA),
    "40": Entry("transaction rollback", _RETRY),
    "42": Entry("syntax error or access rule violation", _DEFECT),
    "44": Entry("with check option violation", _DEFECT),
    "53": Entry("insufficient resources", _TROUBLE, "the database is short of resources"),
    "54": Entry("program limit exceeded", _ROW, "a limit of PostgreSQL was exceeded"),
    "55": Entry("object not in prerequisite state", _TROUBLE, "a database object cannot be used now"),
    "57": Entry("operator intervention", _TROUBLE, "an operator intervened in the database"),
    "58": Entry("system error", _TROUBLE, "the database cannot read or write its files"),
    "72": Entry("snapshot failure", _RETRY),
    "F0": Entry("configuration file error", _TROUBLE, "the configuration of the database is wrong"),
    "HV": Entry("foreign data wrapper error", _DEFECT),
    "P0": Entry("PL/pgSQL error", _ROW, "a function or trigger in the database raised an error"),
    "XX": Entry("internal error", _ROW, "the database reports an internal error"),
}

CODES = {
    "22023": Entry("invalid parameter value", _DEFECT),
    "25006": Entry("read-only SQL transaction", _LOST),
    "25P03": Entry("idle in transaction session timeout", _TROUBLE, "the broker paused within a transaction"),
    "25P04": Entry("transaction timeout", _CANCELLED, "the database ended a transaction that took too long"),
    "40003": Entry("statement completion unknown", _LOST),
    "42501": Entry("insufficient privilege", _TROUBLE, "the database user lacks a privilege"),
    "42703": Entry("undefined column", _TROUBLE, _SCHEMA),
    "42704": Entry("undefined object", _TROUBLE, _SCHEMA),
    "42804": Entry("datatype mismatch", _TROUBLE, _SCHEMA),
    "42883": Entry("undefined function", _TROUBLE, _SCHEMA),
    "42P01": Entry("undefined table", _TROUBLE, _SCHEMA),
    "42P10": Entry("invalid column reference", _TROUBLE, _SCHEMA),
    "53100": Entry("disk full", _TROUBLE, "the disk of the database is full"),
    "53200": Entry("out of memory", _TROUBLE, "the database is out of memory"),
    "53300": Entry("too many connections", _TROUBLE, "the database has no free connection"),
    "53400": Entry("configuration limit exceeded", _TROUBLE, "the database has reached a configured limit"),
    "55P03": Entry("lock not available", _LOCKED, "another session held a lock for too long"),
    "57014": Entry("query canceled", _CANCELLED, "a statement was cancelled"),
    "57P01": Entry("admin shutdown", _LOST),
    "57P02": Entry("crash shutdown", _LOST),
    "57P03": Entry("cannot connect now", _LOST),
    "57P04": Entry("database dropped", _LOST),
    "57P05": Entry("idle session timeout", _LOST),
}

# A connection is unusable after one of these errors: its server stops, or is no longer the primary.
UNUSABLE = frozenset({"57P01", "57P02", "57P03", "25006"})

_REFUSED = "PostgreSQL cannot store a value of this request. Correct the value before you send it again."

# Errors without a code. asyncpg raises its internal error if a connection breaks between two operations.
_LOST_CONNECTION = (
    InterfaceError,
    OperationalError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)

#: The errors of SQLAlchemy and asyncpg.
DRIVER_ERRORS = (
    SQLAlchemyError,
    EmulatedDBAPIException,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)


def is_unusable(error: BaseException | None) -> bool:
    """Return whether an error shows that all connections to its server are unusable."""
    return getattr(error, "sqlstate", None) in UNUSABLE


def translate(error: Exception, *, timed_out: bool = False) -> Exception:
    """Return the broker's error for an error of SQLAlchemy or asyncpg. Return a defect unchanged.

    Args:
        error: The error of SQLAlchemy or asyncpg.
        timed_out: Whether the statement reached the statement timeout.
    """
    if isinstance(error, PoolTimeoutError):
        return Overloaded()
    cause = error.orig if isinstance(error, DBAPIError) else error
    driver = cause.__cause__ if isinstance(cause, EmulatedDBAPIException) else cause
    if isinstance(driver, asyncpg.InterfaceError) and isinstance(driver, ValueError):
        # asyncpg cannot send a value.
        return BadRequest(_REFUSED)
    # If a migration has invalidated a prepared statement, only the driver's error has the code.
    if state := getattr(cause, "sqlstate", None) or getattr(driver, "sqlstate", None):
        return _of_code(str(state), error, timed_out=timed_out)
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    lost = lost or isinstance(error, _LOST_CONNECTION) or isinstance(driver, _LOST_CONNECTION)
    return ConnectionLost() if lost else error


def of_connection(error: Exception) -> Unavailable:
    """Return the broker's error for an error that prevents a connection."""
    known = translate(error)
    return known if isinstance(known, Unavailable) else ConnectionLost()


def _of_code(state: str, error: Exception, *, timed_out: bool) -> Exception:
    line = CODES.get(state) or CLASSES.get(state[:2]) or Entry("", _DEFECT)
    cause = f"{line.cause} (SQLSTATE {state})"
    match line.meaning:
        case Meaning.VALUE:
            return BadRequest(_REFUSED)
        case Meaning.RETRY:
            return RetryTransaction()
        case Meaning.LOST:
            return ConnectionLost()
        case Meaning.ROW:
            return RowFailed(cause)
        case Meaning.LOCKED:
            return Locked(cause)
        case Meaning.CANCELLED if timed_out:
            return TooSlow(f"a statement did not finish in time (SQLSTATE {state})")
        case Meaning.CANCELLED | Meaning.TROUBLE:
            return DatabaseTrouble(cause)
    return error
