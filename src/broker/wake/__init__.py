"""Wake waiting requests when PostgreSQL notifies that something has changed.

A notification is only a hint, and the tables are the truth. A woken request reads again. If a notification
is lost, the sweep wakes the request later.
"""
