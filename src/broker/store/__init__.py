"""The database: the only part of the broker that speaks SQL.

Every step of the life cycle is a function that takes an open transaction and a set of items, and
answers for each of them; `Store.one` and `Store.many` run it and commit. See `assignment.LOCK` for
the order in which rows are locked.
"""

from broker.store.engine import Store

__all__ = ["Store"]
