"""The database: the only part of the broker that speaks SQL.

Every step of the life cycle is a function that takes a connection and a set of items, and answers for each
of them; `Store.one` and `Store.many` run it and commit. Most steps are one statement, which is a
transaction of its own. See `assignment.ASSIGN` for the order in which rows are locked.
"""

from broker.store.engine import Store

__all__ = ["Store"]
