"""The pictures of the laboratory, which are real pictures from the package scikit-image.

The package contains all of them, so the demo downloads nothing.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple


class Picture(NamedTuple):
    """A task of the laboratory: a picture, its instrument, and its needs."""

    file: str
    instrument: str
    needs: dict[str, Any]


PICTURES: tuple[Picture, ...] = (
    Picture("cell.png", "holographic microscope", {"analysis": "count_cells", "modality": "phase"}),
    Picture(
        "ihc.png", "slide scanner", {"analysis": "segment_stain", "modality": "histology", "stain": "DAB"}
    ),
    Picture(
        "ihc.png", "slide scanner", {"analysis": "count_nuclei", "modality": "histology", "stain": "DAB"}
    ),
    Picture("retina.jpg", "fundus camera", {"analysis": "measure_vessels", "modality": "fundus"}),
    Picture("retina.jpg", "fundus camera", {"analysis": "locate_disc", "modality": "fundus"}),
    Picture("microaneurysms.png", "fundus camera", {"analysis": "find_lesions", "modality": "fundus"}),
    Picture("microaneurysms.png", "fundus camera", {"analysis": "measure_vessels", "modality": "fundus"}),
    Picture("hubble_deep_field.jpg", "telescope", {"analysis": "find_sources", "modality": "sky"}),
    Picture("moon.png", "telescope", {"analysis": "find_craters", "modality": "sky"}),
    Picture("page.png", "document scanner", {"analysis": "measure_layout", "modality": "document"}),
    Picture("page.png", "document scanner", {"analysis": "threshold_page", "modality": "document"}),
    Picture("text.png", "document scanner", {"analysis": "threshold_page", "modality": "document"}),
    Picture("coins.png", "photo bench", {"analysis": "count_coins", "modality": "photo"}),
    Picture("gravel.png", "photo bench", {"analysis": "measure_grains", "modality": "photo"}),
    Picture("brick.png", "photo bench", {"analysis": "measure_texture", "modality": "photo"}),
    Picture("grass.png", "photo bench", {"analysis": "measure_texture", "modality": "photo"}),
    Picture("horse.png", "photo bench", {"analysis": "measure_outline", "modality": "photo"}),
)


def path_of(picture: Picture) -> Path:
    """Return the path of the picture in the installed scikit-image."""
    return Path(str(files("skimage") / "data" / picture.file))
