"""The analyses of the laboratory's tools, by the names in the needs of tasks.

An analysis accepts a picture as an array, reports its progress, and returns JSON values. It does not know the
broker. It accepts any picture of its kind, and raises ValueError for others.
"""

from broker.demo.analyses.bench import count_coins, measure_grains, measure_outline, measure_texture
from broker.demo.analyses.cells import count_cells, count_nuclei, segment_stain
from broker.demo.analyses.eye import find_lesions, locate_disc, measure_vessels
from broker.demo.analyses.page import measure_layout, threshold_page
from broker.demo.analyses.picture import load_image
from broker.demo.analyses.sky import find_craters, find_sources
from broker.demo.analyses.types import Analysis, Image

__all__ = ["ANALYSES", "Image", "load_image"]

ANALYSES: dict[str, Analysis] = {
    analysis.__name__: analysis
    for analysis in (
        count_cells,
        segment_stain,
        count_nuclei,
        measure_vessels,
        locate_disc,
        find_lesions,
        find_sources,
        find_craters,
        threshold_page,
        measure_layout,
        count_coins,
        measure_grains,
        measure_texture,
        measure_outline,
    )
}
