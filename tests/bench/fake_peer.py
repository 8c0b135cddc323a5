"""A peer without a database. `FAKE_PEER_FAULT` makes a role fail, or never end."""

import json
import os
import sys
from pathlib import Path

ROLE, ORDER = sys.argv[1], json.loads(sys.argv[2])
# Both programs have the database in common, so they share the file in its name.
GO = Path(os.environ["FAKE_PEER_FOLDER"]) / os.environ["PGDATABASE"]

fault, _, role = os.environ.get("FAKE_PEER_FAULT", "").partition(" ")
if fault == "fail" and role == ROLE:
    raise ValueError("the disk is full")
if ROLE == "worker":
    os.mkfifo(GO)
print("ready", flush=True)  # noqa: T201 - the protocol of the programs
if fault == "hang" and role == ROLE:
    sys.stdin.read()
if ROLE == "submitter":
    sys.stdin.readline()
    GO.write_text("go")
else:
    GO.read_text()
    print(json.dumps([2_000_000] * ORDER["tasks"]), flush=True)  # noqa: T201
sys.stdin.read()
