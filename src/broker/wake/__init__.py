"""Wake waiting requests when PostgreSQL notifies that something has changed.

A notification carries no data that a response uses: a woken request reads the tables again. If a notification
is lost, the sweep wakes the request later.
"""
