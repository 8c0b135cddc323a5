"""Errors of programs."""


class CannotRunError(Exception):
    """A program cannot run here. The message says why, and what to do."""
