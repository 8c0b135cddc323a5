"""The background parts of the service: upkeep, lease renewals and the event stream."""
