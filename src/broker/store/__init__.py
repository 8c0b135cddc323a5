"""The store: the only part of the broker that executes SQL.

Each step of the life cycle is a function of a connection and a set of items that returns a result for each
item. `Store.one` and `Store.many` run it and commit. Most steps are one statement, which is a transaction of
its own. `locks` says in which order all transactions lock rows.
"""

from broker.store.engine import Store

__all__ = ["Store"]
