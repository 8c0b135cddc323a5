"""Shared steps of the analyses: load and normalize a picture, separate its objects, return the result."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pil  # noqa: N813 - "Image" is the argument of an analysis
from scipy import ndimage as ndi
from skimage import color, feature, filters, measure, segmentation, util

from broker.demo.analyses.types import Floats, Image, Labels, Mask, ReportProgress, Result

SMALLEST_SIDE_PX = 32
SUPPORTED_MODES = {"1", "L", "LA", "I;16", "F", "RGB", "RGBA"}
"""Pillow's modes whose arrays an analysis accepts. Palettes and CMYK become RGB."""
SOLID = 0.95


def load_image(path: Path) -> Image:
    """Return the picture of a file without conversion: gray, RGB or RGBA, with 8 or 16 bits."""
    try:
        with pil.open(path) as picture:
            plain = picture if picture.mode in SUPPORTED_MODES else picture.convert("RGB")
            return np.asarray(plain)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ValueError(f"{path.name} is not a readable picture: {error}") from error


def colour(image: Image) -> Floats:
    """Return RGB values from 0 to 1; transparency becomes white."""
    if image.ndim != 3 or image.shape[2] not in {3, 4}:
        raise ValueError(f"the analysis needs a colour picture, but this one has the shape {image.shape}")
    pixels = _unit(image)
    return np.asarray(color.rgba2rgb(pixels) if pixels.shape[2] == 4 else pixels)


def gray(image: Image) -> Floats:
    """Return the luminance from 0 to 1 of any picture."""
    if image.ndim == 3 and image.shape[2] in {3, 4}:
        return np.asarray(color.rgb2gray(colour(image)))
    if image.ndim == 3 and image.shape[2] in {1, 2}:  # gray, perhaps with an alpha channel
        image = image[..., 0]
    if image.ndim != 2:
        raise ValueError(f"the analysis needs one picture, but this array has the shape {image.shape}")
    return _unit(image)


def _unit(image: Image) -> Floats:
    if min(image.shape[:2]) < SMALLEST_SIDE_PX:
        raise ValueError(f"the picture is too small: {image.shape[1]} × {image.shape[0]} px")
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            raise ValueError("the picture has values that are not finite numbers")
        if image.min() < 0 or image.max() > 1:
            image = (image - image.min()) / (image.max() - image.min())
    elif image.dtype.kind not in "bui":
        raise ValueError(f"pixels of type {image.dtype} are not a picture")
    if image.min() == image.max():
        raise ValueError("the picture is empty: every pixel has the same value")
    return np.asarray(util.img_as_float64(image))


def foreground(values: Floats) -> Mask:
    """Return the mask of the objects by Otsu's threshold (1979). The border shows the background.

    Refuse a picture whose two classes are not clearly separated, by Ashman's D (1994). D is 2.6 for pure
    noise and 3.5 for a plain slope, so the limit is above that.
    """
    bright = values > filters.threshold_otsu(values)
    high, low = values[bright], values[~bright]
    spread = np.hypot(high.std(), low.std())
    if np.sqrt(2) * (high.mean() - low.mean()) < 3.6 * spread:
        raise ValueError("no object is distinct from the background")
    border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    return np.asarray(~bright if border.mean() > 0.5 else bright)


def split_touching(mask: Mask, min_distance: int, smoothing: float = 1.0) -> Labels:
    """Label the objects in a mask, and split them where they touch, by a watershed of the distance transform.

    A piece that fills its convex hull is one object, even if it is long.

    Args:
        mask: True for the pixels of objects.
        min_distance: The minimum distance between the centres of two objects, in pixels.
        smoothing: Sigma in pixels. It smooths ragged outlines, which would split one object into two.
    """
    pieces = measure.label(mask)
    single = [piece.label for piece in measure.regionprops(pieces) if piece.solidity > SOLID]
    clumps = np.where(np.isin(pieces, single), 0, pieces)
    distance = filters.gaussian(ndi.distance_transform_edt(mask), smoothing)
    peaks = feature.peak_local_max(distance, min_distance=min_distance, labels=clumps, exclude_border=False)
    markers = np.where(clumps, 0, pieces).astype(np.int32)
    markers[tuple(peaks.T)] = pieces.max() + np.arange(1, len(peaks) + 1)
    markers = segmentation.relabel_sequential(markers)[0]
    return np.asarray(segmentation.watershed(-distance, markers, mask=mask), dtype=np.int32)


def number(value: float, digits: int = 1) -> float:
    """Return a Python float for JSON, with this number of decimal places."""
    return round(float(value), digits)


def quantity(count: int, noun: str) -> str:
    """Return a count with its noun, like `1 coin` and `24 coins`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def finish(report: ReportProgress, summary: str, **values: Any) -> Result:
    """Report that the analysis is complete, and return the result, with its one-line summary first."""
    report(1.0, summary)
    return {"summary": summary, **values}
