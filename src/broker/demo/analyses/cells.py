"""Microscopy: cells on an empty background, and stained tissue."""

import numpy as np
from scipy import ndimage as ndi
from skimage import color, filters, measure, morphology, segmentation

from broker.demo.analyses.picture import colour, finish, foreground, gray, number, quantity, split_touching
from broker.demo.analyses.types import Floats, Image, Labels, Mask, ReportProgress, Result


def count_cells(image: Image, report: ReportProgress) -> Result:
    """Count cells on an empty background and measure their size and roundness.

    Otsu's threshold (1979) after a light Gaussian finds the cells. The gray value of the steepest slopes
    (Kittler 1985) determines their outlines. Holes are filled, and a watershed of the distance transform
    separates touching cells. The result excludes specks below a tenth of the typical area, and includes cells
    at the border. Diameters are those of a circle of equal area. Circularity is 4πA/P², which is 1 for a
    circle.
    """
    values = filters.gaussian(gray(image), 1.5)
    report(0.2, "smoothed")
    mask = ndi.binary_fill_holes(morphology.opening(_to_the_edge(values), morphology.disk(2)))
    report(0.5, f"{mask.mean():.1%} of the picture is cell")
    labels = _without_specks(split_touching(mask, _typical_radius(mask), smoothing=2))
    report(0.8, f"{quantity(labels.max(), 'object')} found")
    cells = measure.regionprops(labels)
    if not cells:
        raise ValueError("found no cell")
    diameters = [cell.equivalent_diameter_area for cell in cells]
    roundness = [4 * np.pi * cell.area / cell.perimeter_crofton**2 for cell in cells]
    inside = segmentation.clear_border(labels)
    return finish(
        report,
        f"{quantity(len(cells), 'cell')}, median diameter {np.median(diameters):.0f} px",
        count=len(cells),
        touching_border=len(cells) - len(np.unique(inside[inside > 0])),
        median_area_px=number(np.median([cell.area for cell in cells]), 0),
        median_diameter_px=number(np.median(diameters)),
        median_circularity=number(np.median(roundness), 3),
        covered_fraction=number(mask.mean(), 4),
        centres_px=[[number(cell.centroid[1]), number(cell.centroid[0])] for cell in cells[:100]],
    )


def segment_stain(image: Image, report: ReportProgress) -> Result:
    """Measure the area and the strength of the brown stain (DAB) in a tissue section.

    The method separates haematoxylin, eosin and DAB by colour deconvolution (Ruifrok & Johnston 2001), and
    then applies Otsu's threshold (1979) to the DAB channel. Pixels darker than the glass count as tissue.
    Strengths are optical densities (log10) times the unit vector of the stain.
    """
    rgb = colour(image)
    _check_stain(rgb)
    haematoxylin, _, dab = np.moveaxis(color.rgb2hed(rgb), 2, 0)
    report(0.4, "stains separated")
    smooth = filters.gaussian(dab, 1)
    stained = smooth > filters.threshold_otsu(smooth)
    report(0.7, f"{stained.mean():.1%} of the picture is brown")
    density = filters.gaussian(rgb.min(axis=2), 3)
    tissue = (density < filters.threshold_otsu(density)) | stained
    fraction = stained.sum() / tissue.sum()
    return finish(
        report,
        f"DAB on {stained.mean():.0%} of the picture, {fraction:.0%} of the tissue",
        dab_area_fraction=number(stained.mean(), 4),
        tissue_area_fraction=number(tissue.mean(), 4),
        dab_of_tissue_fraction=number(fraction, 4),
        dab_mean_density=number(dab[stained].mean(), 4),
        haematoxylin_mean_density=number(haematoxylin[tissue].mean(), 4),
    )


def count_nuclei(image: Image, report: ReportProgress) -> Result:
    """Count the blue nuclei of a stained tissue section.

    The method subtracts the surroundings from the haematoxylin channel (Ruifrok & Johnston 2001), so that it
    treats brown and pale tissue alike. Then it applies Otsu's threshold (1979) and a watershed of the
    distance transform. Overlapping nuclei count as far as they are visible, so the error is about 10 %.
    """
    rgb = colour(image)
    _check_stain(rgb)
    haematoxylin = color.rgb2hed(rgb)[..., 0]
    report(0.3, "haematoxylin separated")
    labels = _nuclei(haematoxylin)
    report(0.8, f"{labels.max()} nuclei found")
    areas = [nucleus.area for nucleus in measure.regionprops(labels)]
    if not areas:
        raise ValueError("found no nucleus")
    return finish(
        report,
        f"{len(areas)} nuclei, median area {np.median(areas):.0f} px",
        count=len(areas),
        median_area_px=number(np.median(areas), 0),
        area_fraction=number(sum(areas) / labels.size, 4),
        density_per_megapixel=number(1e6 * len(areas) / labels.size, 0),
    )


def _nuclei(haematoxylin: Floats) -> Labels:
    local = filters.gaussian(haematoxylin, 1.5) - filters.gaussian(haematoxylin, 15)
    mask = morphology.opening(local > filters.threshold_otsu(local), morphology.disk(2))
    mask = morphology.remove_small_objects(ndi.binary_fill_holes(mask), max_size=45)
    return split_touching(mask, min_distance=5)


def _check_stain(rgb: Floats) -> None:
    """Check that the picture has colour, and glass or pale tissue between the stained parts."""
    saturation = rgb.max(axis=2) - rgb.min(axis=2)
    if np.percentile(saturation, 95) < 0.1:
        raise ValueError("the picture has no colour, so its stains cannot be separated")
    if np.percentile(rgb.min(axis=2), 99) < 0.6:
        raise ValueError("the picture has no bright background: this is not a section in transmitted light")


def _to_the_edge(values: Floats) -> Mask:
    """Return the mask of the objects up to their steepest edge, because a halo shifts Otsu's threshold."""
    objects = foreground(values)
    level = np.average(values, weights=filters.sobel(values) ** 2)
    bright = values[objects].mean() > values[~objects].mean()
    edged = values > level if bright else values < level
    return np.asarray(edged & morphology.dilation(objects, morphology.disk(5)))


def _typical_radius(mask: Mask) -> int:
    """Return the inner radius of the median object, to distinguish maxima of one object and of two."""
    distance = ndi.distance_transform_edt(mask)
    labels = measure.label(mask)
    radii = ndi.maximum(distance, labels, np.arange(1, labels.max() + 1)) if labels.max() else [1]
    return max(3, round(float(np.median(radii)) * 0.8))


def _without_specks(labels: Labels) -> Labels:
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    if len(areas) > 1:
        labels = np.where(areas[labels] >= 0.1 * np.median(areas[1:]), labels, 0)
    return np.asarray(segmentation.relabel_sequential(labels)[0], dtype=np.int32)
