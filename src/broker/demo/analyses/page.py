"""The document scanner: ink on unevenly lit paper, and the layout of the text."""

import numpy as np
from scipy import ndimage as ndi
from skimage import filters, measure, morphology

from broker.demo.analyses.picture import finish, gray, number
from broker.demo.analyses.types import Floats, Image, Mask, ReportProgress, Result

Box = tuple[int, int, int, int]

WINDOW_PX = 25
SENSITIVITY = 0.2


def threshold_page(image: Image, report: ReportProgress) -> Result:
    """Separate ink from paper under uneven light, and measure the amount of ink, its pieces and its strokes.

    The method uses Sauvola's local threshold (2000) with a window of 25 px, k = 0.2 and R from the range of
    the picture. The shadow fraction is the part of the picture that a global threshold (Otsu 1979) mistakes
    for ink.
    """
    values = gray(image)
    report(0.1, "picture loaded")
    ink = _ink(values)
    report(0.5, f"ink on {ink.mean():.1%} of the page")
    pieces = int(measure.label(ink, connectivity=2).max())
    stroke = 2 * np.median(ndi.distance_transform_edt(ink)[morphology.skeletonize(ink)])
    report(0.8, f"{pieces} pieces")
    everywhere = values < filters.threshold_otsu(values)
    return finish(
        report,
        f"ink on {ink.mean():.1%} of the page in {pieces} pieces, strokes {stroke:.0f} px wide",
        ink_fraction=number(ink.mean(), 4),
        pieces=pieces,
        stroke_width_px=number(stroke),
        contrast=number(np.median(values[~ink]) - np.median(values[ink]), 3),
        shadow_fraction=number((everywhere & ~ink).mean(), 4),
    )


def measure_layout(image: Image, report: ReportProgress) -> Result:
    """Count the lines and words of printed text and measure the skew of the page.

    The ink is that of Sauvola (2000). The skew is the angle at which the projection of the ink on the
    vertical has the sharpest steps (Postl 1986), within ±10°, positive if lines fall to the right. Words are
    letters joined over gaps of up to half a letter height (run-length smearing, Wong 1982). Lines are words
    that follow each other at the same height, which also works for curved pages. Ruled lines and specks do
    not count.
    """
    ink = _ink(gray(image))
    report(0.3, f"ink on {ink.mean():.1%} of the page")
    skew = _skew(ink)
    report(0.6, f"skew {skew:+.1f}°")
    height, words = _words(ink)
    report(0.8, f"{len(words)} words")
    lines = _lines(words)
    return finish(
        report,
        f"{len(lines)} lines, {len(words)} words, skew {skew:+.1f}°",
        lines=len(lines),
        words=len(words),
        words_per_line=[len(line) for line in lines],
        letter_height_px=number(height),
        skew_degrees=number(skew, 2),
    )


def _ink(values: Floats) -> Mask:
    low, high = np.percentile(values, [1, 99])
    if high - low < 0.1:
        raise ValueError("the contrast is too low: this is not a written page")
    threshold = filters.threshold_sauvola(values, WINDOW_PX, k=SENSITIVITY, r=(high - low) / 2)
    ink = morphology.remove_small_objects(values < threshold, max_size=4, connectivity=2)
    if not 0.002 < ink.mean() < 0.35:
        raise ValueError(f"{ink.mean():.1%} of the picture would be ink: this is not a page")
    if np.median(values[~ink]) < (low + high) / 2:
        raise ValueError("the background is dark: this is not ink on paper")
    return np.asarray(ink)


def _skew(ink: Mask) -> float:
    rows, columns = np.nonzero(ink)

    def sharpness(degrees: float) -> float:
        angle = np.radians(degrees)
        heights = rows * np.cos(angle) - columns * np.sin(angle)
        profile = np.bincount((heights - heights.min()).astype(int))
        return float((np.diff(profile) ** 2).sum())

    return max((step / 4 for step in range(-40, 41)), key=sharpness)


def _words(ink: Mask) -> tuple[float, list[Box]]:
    letters = [box for box in _boxes(ink) if 0.1 < (box[2] - box[0]) / (box[3] - box[1]) < 10]
    if len(letters) < 5:
        raise ValueError("found no printed text")
    height = float(np.median([box[2] - box[0] for box in letters]))
    gap = max(1, round(0.5 * height))
    apart = np.pad(ink, ((0, 0), (gap, gap)))
    joined = ndi.binary_closing(apart, np.ones((1, gap + 1)))[:, gap:-gap]
    return height, [box for box in _boxes(joined) if box[2] - box[0] >= 0.5 * height]


def _boxes(mask: Mask) -> list[Box]:
    """Return top, left, bottom and right of each piece."""
    return [piece.bbox for piece in measure.regionprops(measure.label(mask, connectivity=2))]


def _lines(words: list[Box]) -> list[list[Box]]:
    """Group words into lines, from the top: append each word to the line that it overlaps most in height."""
    lines: list[list[Box]] = []
    for word in sorted(words, key=lambda box: box[1]):
        behind = max(lines, key=lambda line: _overlap(line[-1], word), default=None)
        if behind is not None and _overlap(behind[-1], word) > 1 / 3:
            behind.append(word)
        else:
            lines.append([word])
    return sorted(lines, key=lambda line: line[0][0])


def _overlap(one: Box, other: Box) -> float:
    common = min(one[2], other[2]) - max(one[0], other[0])
    return common / min(one[2] - one[0], other[2] - other[0])
