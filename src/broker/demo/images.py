"""The pictures that the laboratory's instruments take: real ones, which come with scikit-image.

Only those that lie in its wheel are named here: nothing is ever downloaded.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple


class Picture(NamedTuple):
    """One task of the laboratory: a picture, who took it, and what is to be done with it."""

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
    """Where the picture's file lies in the installed scikit-image."""
    return Path(str(files("skimage") / "data" / picture.file))
