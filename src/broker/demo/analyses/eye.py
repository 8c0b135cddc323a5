"""The fundus of the eye: its vessels, the optic disc, small lesions."""

from itertools import pairwise

import numpy as np
from scipy import ndimage as ndi
from skimage import feature, filters, measure, morphology, transform

from broker.demo.analyses.picture import colour, finish, gray, number, quantity
from broker.demo.analyses.types import Floats, Image, Mask, ReportProgress, Result

WORKING_SIDE_PX = 720
"""The size to which larger pictures are reduced. In a 45° photograph, vessels are then 2 to 10 px wide."""
VESSEL_SIGMAS_PX = (1.0, 2.0, 3.0)
NEIGHBOURS = np.ones((3, 3), dtype=int)


def measure_vessels(image: Image, report: ReportProgress) -> Result:
    """Measure the vessel tree: its area, length, branch points and median width.

    The method uses the green channel, in which blood is darkest, relative to its surroundings. It applies the
    line filter of Sato (1998) at three widths, hysteresis around Otsu's threshold (1979), and the skeleton of
    Zhang & Suen (1984) without spurs shorter than two vessel widths. Lengths are in pixels of the original
    picture; a diagonal step counts as √2. The width is that of the line, slightly more than the blood column.
    """
    green, field, scale = _field(image)
    report(0.15, f"field of view is {field.mean():.0%} of the picture")
    response = filters.sato(_flatten(green, field, 12), sigmas=VESSEL_SIGMAS_PX, black_ridges=True)
    response[~field] = 0
    report(0.7, "lines filtered")
    vessels, skeleton = _vessel_tree(response, field)
    if not skeleton.any():
        raise ValueError("found no vessel")
    fraction = vessels.sum() / field.sum()
    if fraction > 0.3:
        raise ValueError(f"{fraction:.0%} of the field would be vessel: this is not a fundus")
    report(0.9, f"vessels cover {fraction:.1%}")
    width = 2 * np.median(ndi.distance_transform_edt(vessels)[skeleton]) / scale
    length = _length(skeleton) / scale
    branches = int(measure.label(_junctions(skeleton), connectivity=2).max())
    return finish(
        report,
        f"vessels on {fraction:.1%} of the field, {length:.0f} px long, {quantity(branches, 'branch point')}",
        vessel_area_fraction=number(fraction, 4),
        skeleton_length_px=number(length, 0),
        branch_points=branches,
        median_width_px=number(width),
        length_density_per_px=number(length * scale**2 / field.sum(), 5),
    )


def locate_disc(image: Image, report: ReportProgress) -> Result:
    """Find the optic disc and the fovea of a fundus photograph, and whether the eye is a left or a right one.

    A gray closing covers the vessels. Then the disc is the brightest spot of its usual size, a seventh of the
    field of view. Its diameter is the longer axis of the region above half the brightness of the disc. The
    fovea is the darkest spot at 2 to 3 disc diameters from there (2.5 is usual), at about the same height. In
    a photograph the disc of a left eye is on the left.
    """
    rgb = colour(image)
    green, field, scale = _field(rgb)
    corners = [field[0, 0], field[0, -1], field[-1, 0], field[-1, -1]]
    if any(corners) or not 0.4 < field.mean() < 0.9:
        raise ValueError("the picture has no round field of view: this is not a whole fundus photograph")
    report(0.2, "field of view found")
    usual = 2 * np.sqrt(field.sum() / np.pi) / 7
    small = ndi.distance_transform_edt(field) > usual / 4
    bare = ndi.grey_closing(green, footprint=morphology.disk(round(usual / 12)))
    bright = np.where(small, _average(bare, field, usual / 5), -np.inf)
    peak = np.unravel_index(np.argmax(bright), bright.shape)
    background = np.median(green[field])
    fine = _average(bare, field, usual / 25)
    near = np.hypot(*(np.indices(green.shape) - np.reshape(peak, (2, 1, 1)))) < usual
    region = measure.label((fine > (background + np.percentile(fine[near], 98)) / 2) & near)
    if not region[peak]:
        raise ValueError("found no optic disc")
    disc = measure.regionprops((region == region[peak]).astype(int))[0]
    row, column = disc.centroid
    diameter = disc.axis_major_length
    report(0.6, f"disc of {diameter / scale:.0f} px found")
    rows, columns = np.indices(green.shape)
    distance = np.hypot(rows - row, columns - column)
    ring = (distance > 2 * usual) & (distance < 3 * usual) & (np.abs(rows - row) < usual) & small
    if not ring.any():
        raise ValueError("the fovea is not in the picture")
    dark = np.where(ring, _average(green, field, usual / 5), np.inf)
    fovea = np.unravel_index(np.argmin(dark), dark.shape)
    eye = "left" if column < fovea[1] else "right"
    return finish(
        report,
        f"{eye} eye, disc diameter {diameter / scale:.0f} px",
        eye=eye,
        disc_centre_px=[number(column / scale, 0), number(row / scale, 0)],
        disc_diameter_px=number(diameter / scale, 0),
        fovea_px=[number(fovea[1] / scale, 0), number(fovea[0] / scale, 0)],
        disc_to_fovea_px=number(np.hypot(fovea[0] - row, fovea[1] - column) / scale, 0),
    )


def find_lesions(image: Image, report: ReportProgress) -> Result:
    """Find small round dark spots, such as microaneurysms, but no vessels.

    The difference of Gaussians (Lowe 2004) finds spots on the flattened green channel. A spot counts if it is
    deeper than six times the noise, and round. A spot is round if its two curvatures (the eigenvalues of the
    Hessian) are within a factor of two of each other; those of a vessel are not. Depths are fractions of the
    surrounding brightness.
    """
    green, field, scale = _field(image)
    flat = _flatten(green, field, 12)
    report(0.2, "background evened out")
    residue = flat - ndi.gaussian_filter(flat, 1.5)
    noise = 1.4826 * np.median(np.abs(residue[field] - np.median(residue[field])))
    spots = feature.blob_dog(
        -flat, min_sigma=1, max_sigma=5, sigma_ratio=1.3, threshold=2 * noise, overlap=0.3
    )
    report(0.6, f"{len(spots)} dark spots")
    lesions = [
        (column, row, sigma, depth)
        for row, column, sigma in spots
        if (depth := _depth(flat, field, int(row), int(column), sigma)) > 6 * noise
        and _is_round(flat, int(row), int(column), sigma)
    ]
    lesions.sort(key=lambda lesion: -lesion[3])
    report(0.9, f"{len(lesions)} of them are round")
    return finish(
        report,
        f"{quantity(len(lesions), 'lesion')}, of {quantity(len(spots), 'dark spot')} in all",
        count=len(lesions),
        dark_spots=len(spots),
        noise_fraction=number(noise, 4),
        lesions=[
            {
                "centre_px": [number(column / scale), number(row / scale)],
                "diameter_px": number(2 * np.sqrt(2) * sigma / scale),
                "depth_fraction": number(depth, 3),
            }
            for column, row, sigma, depth in lesions[:50]
        ],
    )


def _field(image: Image) -> tuple[Floats, Mask, float]:
    """Return the green channel at working size, the mask of the eye, and the scale factor."""
    rgb = colour(image) if image.ndim == 3 and image.shape[2] >= 3 else gray(image)[..., np.newaxis]
    scale = min(1.0, WORKING_SIDE_PX / max(rgb.shape[:2]))
    if scale < 1:
        size = (round(rgb.shape[0] * scale), round(rgb.shape[1] * scale), rgb.shape[2])
        rgb = transform.resize(rgb, size, anti_aliasing=True)
    lightest = rgb.max(axis=2)
    field = lightest > 0.5 * filters.threshold_otsu(lightest)
    if field.mean() > 0.95:  # a detail without the dark surround
        return rgb[..., min(1, rgb.shape[2] - 1)], np.ones_like(field), scale
    field = ndi.binary_erosion(ndi.binary_fill_holes(field), iterations=4)
    if field.mean() < 0.05:
        raise ValueError("the picture is nearly all dark, so it has no field of view")
    return rgb[..., min(1, rgb.shape[2] - 1)], field, scale


def _average(values: Floats, field: Mask, sigma: float) -> Floats:
    """Return the Gaussian mean of the pixels in the field."""
    weight = ndi.gaussian_filter(field.astype(float), sigma)
    return np.asarray(ndi.gaussian_filter(values * field, sigma) / np.maximum(weight, 1e-6))


def _flatten(values: Floats, field: Mask, sigma: float) -> Floats:
    """Return the brightness of each pixel relative to its surroundings, as a fraction from -1."""
    around = np.maximum(_average(values, field, sigma), 1e-3)
    return np.where(field, values / around - 1, 0.0)


def _vessel_tree(response: Floats, field: Mask) -> tuple[Mask, Mask]:
    threshold = filters.threshold_otsu(response[field])
    mask = filters.apply_hysteresis_threshold(response, 0.6 * threshold, 1.3 * threshold)
    labels = measure.label(mask, connectivity=2)
    long = [region.label for region in measure.regionprops(labels) if region.axis_major_length > 25]
    vessels = np.isin(labels, long)
    skeleton = morphology.skeletonize(vessels)
    for _ in range(2):  # a spur may have a spur itself
        skeleton = _without_spurs(skeleton, shorter_than=10)
    return vessels, skeleton


def _junctions(skeleton: Mask) -> Mask:
    neighbours = ndi.convolve(skeleton.astype(int), NEIGHBOURS, mode="constant") - 1
    return np.asarray(skeleton & (neighbours > 2))


def _without_spurs(skeleton: Mask, shorter_than: int) -> Mask:
    """Remove side branches that end freely and have fewer pixels than this."""
    neighbours = ndi.convolve(skeleton.astype(int), NEIGHBOURS, mode="constant") - 1
    junctions = _junctions(skeleton)
    branches = measure.label(skeleton & ~junctions, connectivity=2)
    sizes = np.bincount(branches.ravel())
    ends = np.unique(branches[skeleton & (neighbours == 1)])
    adjacent = np.unique(branches[ndi.binary_dilation(junctions, NEIGHBOURS)])
    spurs = [label for label in np.intersect1d(ends, adjacent) if label and sizes[label] < shorter_than]
    return np.asarray(morphology.skeletonize(skeleton & ~np.isin(branches, spurs)))


def _length(skeleton: Mask) -> float:
    """Return the length of a skeleton; a diagonal step counts only where no straight path exists."""
    straight = (skeleton[1:] & skeleton[:-1]).sum() + (skeleton[:, 1:] & skeleton[:, :-1]).sum()
    a, b = skeleton[:-1, :-1], skeleton[1:, 1:]
    c, d = skeleton[:-1, 1:], skeleton[1:, :-1]
    diagonal = (a & b & ~c & ~d).sum() + (c & d & ~a & ~b).sum()
    return float(straight + np.sqrt(2) * diagonal)


def _depth(flat: Floats, field: Mask, row: int, column: int, sigma: float) -> float:
    """Return the difference in brightness between the ring around a spot and the spot."""
    reach = int(np.ceil(4 * sigma))
    window = np.s_[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
    rows, columns = np.indices(flat.shape)[(slice(None), *window)]
    distance = np.hypot(rows - row, columns - column)
    means = [
        flat[window][(distance >= low) & (distance < high) & field[window]]
        for low, high in pairwise((0, sigma, 2 * sigma, 4 * sigma))
    ]
    return float(np.median(means[2]) - np.mean(means[0])) if means[0].size and means[2].size else 0.0


def _is_round(flat: Floats, row: int, column: int, sigma: float) -> bool:
    reach = int(np.ceil(6 * sigma))
    top, left = max(0, row - reach), max(0, column - reach)
    window = flat[top : row + reach + 1, left : column + reach + 1]
    hessian = feature.hessian_matrix(window, sigma=sigma, use_gaussian_derivatives=True)
    large, small = feature.hessian_matrix_eigvals(hessian)[:, row - top, column - left]
    return bool(large > 0 and small > 0.5 * large)
