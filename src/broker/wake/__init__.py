"""Wake waiting requests when something has changed.

A notification from PostgreSQL carries no data that a response uses: a woken request reads the tables again.
If a notification is lost, the sweep wakes the request later. Only a process that has committed a change
itself may hand the new state to its waiting requests.
"""
