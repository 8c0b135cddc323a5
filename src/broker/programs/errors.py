"""What keeps programs from being run."""


class CannotRunError(Exception):
    """A program cannot be run here; the message says why, and what to do about it."""
