"""A `broker` that becomes a user whom no list has: `python -m tests.support.nobody_known serve`, as root.

Only root may be able to read this Python: it imports first.
"""

import os

import encodings.idna  # noqa: F401  # isort: skip
from broker.cli import backup, database_keys, demo, keys, main, migrate, serve  # noqa: F401

if __name__ == "__main__":
    os.setgroups([])
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
    main(prog_name="broker")
