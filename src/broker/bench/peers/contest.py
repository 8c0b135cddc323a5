"""Let the broker and its peers run each workload in turn."""

from collections.abc import Callable, Sequence
from pathlib import Path

from broker.bench.figures import Figures, Measured
from broker.bench.peers.installation import install
from broker.bench.peers.measure import measure_broker, measure_peer
from broker.bench.peers.peer import Peer, PeerError
from broker.bench.peers.workloads import WORKLOADS, Workload
from broker.bench.scenarios import Size
from broker.bench.stage import Stage

BROKER = "broker"


async def compare(
    stage: Stage,
    peers: Sequence[Peer],
    *,
    rounds: int,
    size: Size,
    say: Callable[[str], None],
    show_progress: Callable[[str, int], None],
) -> list[Measured]:
    """Install the peers, and measure them and the broker. Skip a peer that fails, and say why.

    Args:
        stage: The database server, and the services of the broker.
        peers: The peers.
        rounds: How often to run each workload.
        size: The size of the workloads.
        say: Shows a line of text.
        show_progress: Shows the number of completed rounds of a workload.

    Raises:
        BenchError: A measurement of the broker failed.
    """
    installed: dict[Peer, Path] = {}

    def skip(peer: Peer, error: PeerError) -> None:
        installed.pop(peer, None)
        say(f"{peer.name} is skipped. {error}")

    async def round_of(workload: Workload) -> Figures:
        figures = _of(BROKER, await measure_broker(stage, workload, size))
        for peer, folder in list(installed.items()):
            try:
                figures |= _of(peer.name, await measure_peer(stage, peer, folder, workload, size))
            except PeerError as error:
                skip(peer, error)
        return figures

    for peer in peers:
        try:
            installed[peer] = await install(peer, say)
        except PeerError as error:
            skip(peer, error)
    measured = []
    for workload in WORKLOADS:
        figures = []
        for number in range(rounds):
            show_progress(workload.name, number)
            figures.append(await round_of(workload))
        show_progress(workload.name, rounds)
        measured.append(_measured(workload, figures, list(installed)))
    return measured


def figure_of(contestant: str, figure: str) -> str:
    """Return the name of a figure of the broker or of a peer."""
    return f"{contestant} {figure}"


def ratio_to(peer: str, figure: str) -> str:
    """Return the name of the ratio of a figure of the broker to that of a peer."""
    return f"{figure}, broker : {peer}"


def _of(contestant: str, figures: Figures) -> Figures:
    return {figure_of(contestant, figure): value for figure, value in figures.items()}


def _measured(workload: Workload, rounds: list[Figures], peers: Sequence[Peer]) -> Measured:
    """Return the figures of a workload, without those of peers that failed."""
    names = [name for name in rounds[0] if all(name in figures for figures in rounds)]
    return Measured(
        scenario=workload.name,
        says=workload.says,
        rounds=[{name: figures[name] for name in names} for figures in rounds],
        ratios={
            ratio_to(peer.name, figure): (figure_of(BROKER, figure), figure_of(peer.name, figure))
            for peer in peers
            for figure in workload.figures
        },
        wanted={ratio_to(peer.name, workload.figures[0]): workload.wanted for peer in peers},
    )
