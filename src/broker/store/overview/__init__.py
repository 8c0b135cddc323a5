"""The overview: what many are at, what waits and what has ended, in summaries that hold no payload."""

from broker.store.overview import failures, history, queue, timeline, tools, waiting

__all__ = ["failures", "history", "queue", "timeline", "tools", "waiting"]
