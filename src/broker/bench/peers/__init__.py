"""Compare the broker with task queues on PostgreSQL that a user might choose instead.

Each peer is installed in a folder of its own, and runs on the same database server with the same durability.
The broker also does what its peers do not: HTTP, an assigner and an archive.
"""
