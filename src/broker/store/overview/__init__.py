"""The overview: summaries of the queue, of tools and of ended work for the dashboard, without payloads."""

from broker.store.overview import failures, history, queue, timeline, tools, waiting

__all__ = ["failures", "history", "queue", "timeline", "tools", "waiting"]
