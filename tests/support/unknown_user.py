"""The `broker` command, run by a user without an entry in /etc/passwd.

Run `python -m tests.support.unknown_user serve` as root. It imports the modules first, because only root may
be able to read this Python installation, and then becomes that user.
"""

import os

import encodings.idna  # noqa: F401  # isort: skip
from broker.cli import backup, database_keys, demo, keys, main, migrate, serve  # noqa: F401

if __name__ == "__main__":
    os.setgroups([])
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
    main(prog_name="broker")
