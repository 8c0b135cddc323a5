"""Errors of the embedded PostgreSQL."""


class EmbeddedError(Exception):
    """The embedded PostgreSQL failed. The message says why, and what to do."""


class ProgramsMissingError(EmbeddedError):
    """The package with the PostgreSQL programs is not installed, or has none for this machine."""


class ProgramFailedError(EmbeddedError):
    """A program of PostgreSQL such as initdb ended with an error. The message contains its output."""


class FolderInUseError(EmbeddedError):
    """Another broker uses this data folder."""


class FolderUnreachableError(EmbeddedError):
    """The unprivileged account that PostgreSQL runs as under root cannot enter the data folder."""


class FolderForeignError(EmbeddedError):
    """A needed folder exists, but belongs to another user or is open to others."""


class VersionMismatchError(EmbeddedError):
    """Another major version of PostgreSQL wrote the data."""


class StartError(EmbeddedError):
    """PostgreSQL did not start. The message contains the last lines of its log."""
