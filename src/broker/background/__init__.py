"""The background tasks of the service: upkeep, lease renewals and the event stream."""
