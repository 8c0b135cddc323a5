"""Waking who waits: PostgreSQL's notifications on one side, parked requests on the other.

Notifications are hints and the tables are the truth: a woken request looks again, and one that is
never woken looks again by itself after a while.
"""
