"""What runs beside the requests: upkeep, lease renewals, the event stream."""
