"""The overview: what many are at, what waits and what has ended, in summaries that hold no payload."""
