"""Show the comparison as a table in Markdown."""

from collections.abc import Sequence

from broker.bench.display import number
from broker.bench.figures import Measured
from broker.bench.peers.contest import BROKER, figure_of, ratio_to
from broker.bench.peers.peer import Peer
from broker.bench.peers.workloads import WORKLOADS


def comparison_table(measured: Sequence[Measured], peers: Sequence[Peer]) -> str:
    """Return a table of the medians, with a ratio for each peer. A peer without figures has no columns."""
    summaries = {results.scenario: results.summary() for results in measured}
    first = WORKLOADS[0]
    shown = [peer.name for peer in peers if figure_of(peer.name, first.figures[0]) in summaries[first.name]]
    rows = [["scenario", BROKER, *(heading for peer in shown for heading in (peer, "ratio"))]]
    for workload in WORKLOADS:
        summary = summaries[workload.name]
        for figure in workload.figures:
            names = [figure_of(BROKER, figure)]
            for peer in shown:
                names += [figure_of(peer, figure), ratio_to(peer, figure)]
            cells = (number(summary[name].median) if name in summary else "" for name in names)
            rows.append([f"{workload.name}, {figure}", *cells])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first one is the heading, with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = (_line(row, widths) for row in rows)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([head, _line(rule, widths), *body])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of the table: the name on the left, the numbers on the right."""
    aligned = [cells[0].ljust(widths[0])]
    aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join(aligned)} |"
