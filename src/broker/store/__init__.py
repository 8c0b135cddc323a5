"""The store: the only part of the broker that executes SQL.

Each step of the life cycle is a function: it gets a connection and a set of items, and returns a result for
each item. `Store.one` and `Store.many` run a step and commit. Most steps are one statement, which is a
transaction of its own. `locks` defines the order in which all transactions lock rows.
"""

from broker.store.engine import Store

__all__ = ["Store"]
