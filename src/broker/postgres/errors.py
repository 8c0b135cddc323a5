"""The errors of the embedded Postgres: each is an EmbeddedError."""


class EmbeddedError(Exception):
    """The embedded Postgres failed; the message says why, and what to do."""


class ProgramsMissingError(EmbeddedError):
    """The wheel with the Postgres programs is not installed, or has none for this machine."""


class ProgramFailedError(EmbeddedError):
    """A program of Postgres (initdb, psql, ...) ended with an error; the message contains its output."""


class FolderInUseError(EmbeddedError):
    """Another broker is running on this data folder."""


class FolderUnreachableError(EmbeddedError):
    """The unprivileged account that Postgres runs as under root cannot enter the data folder."""


class FolderForeignError(EmbeddedError):
    """A needed folder exists, but belongs to another user or is open to others."""


class VersionMismatchError(EmbeddedError):
    """Another major version of Postgres wrote the data."""


class StartError(EmbeddedError):
    """Postgres did not start; the message contains the last lines of its log."""
