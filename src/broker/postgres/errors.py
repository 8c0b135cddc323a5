"""What can go wrong with the embedded Postgres.

EmbeddedError
├── ProgramsMissingError
├── ProgramFailedError
├── FolderInUseError
├── FolderUnreachableError
├── FolderForeignError
├── VersionMismatchError
└── StartError
"""


class EmbeddedError(Exception):
    """The embedded Postgres can't do what it should; the message says why, and what to do about it."""


class ProgramsMissingError(EmbeddedError):
    """The wheel that ships the Postgres programs is not installed, or ships none for this machine."""


class ProgramFailedError(EmbeddedError):
    """A program of Postgres (initdb, psql, ...) ended with an error; its own words are in the message."""


class FolderInUseError(EmbeddedError):
    """Another broker is running on this data folder."""


class FolderUnreachableError(EmbeddedError):
    """We are root, and the account that Postgres runs as can't enter the data folder or a folder above it."""


class FolderForeignError(EmbeddedError):
    """A folder of the name we need exists, but it isn't ours: another's, or open to others."""


class VersionMismatchError(EmbeddedError):
    """The data were written by another major version of Postgres."""


class StartError(EmbeddedError):
    """Postgres did not start; the last lines of its log are in the message."""
