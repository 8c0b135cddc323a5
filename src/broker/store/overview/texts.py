"""How much is told of what others have written."""

from broker.summaries import MOST_CHARS

# Of so many reports the last one that says something in words is looked for.
_LAST_REPORTS = 100


def clipped(value: str) -> str:
    """SQL for a text, or JSON as one, that is cut where it is long."""
    return f"left(cast({value} as text), {MOST_CHARS})"


def last_message(work_id: str) -> str:
    """SQL for the last message that was reported on work under way: one row, or none."""
    return f"""
    select {clipped("message")} as message
    from (select seq, message from work_reports r where r.work_id = {work_id}
          order by seq desc limit {_LAST_REPORTS}) lately
    where message is not null
    order by seq desc
    limit 1"""
