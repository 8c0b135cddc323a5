"""The photo bench: coins, gravel, surfaces, silhouettes."""

import numpy as np
from scipy import ndimage as ndi
from skimage import feature, filters, measure, morphology, segmentation

from broker.demo.analyses.picture import finish, foreground, gray, number, quantity, split_touching
from broker.demo.analyses.types import Floats, Image, Labels, ReportProgress, Result


def count_coins(image: Image, report: ReportProgress) -> Result:
    """Count round objects on a table under uneven light and measure their diameters.

    Subtract a wide Gaussian of the picture, apply Otsu's threshold (1979), fill holes, smooth edges, and
    separate touching coins by a watershed. A coin has a solidity above 0.9 and axes within a third of each
    other. Other objects, such as the edge of the table, are counted separately. Diameters are those of a
    circle of equal area.
    """
    values = gray(image)
    labels = _label_objects(values)
    report(0.6, f"{quantity(labels.max(), 'object')} found")
    objects = measure.regionprops(labels)
    coins = [
        candidate
        for candidate in objects
        if candidate.solidity > 0.9 and candidate.axis_minor_length > 0.67 * candidate.axis_major_length
    ]
    report(0.8, f"{len(coins)} of them are round")
    if not coins:
        raise ValueError("found no round object")
    diameters = sorted(coin.equivalent_diameter_area for coin in coins)
    return finish(
        report,
        f"{quantity(len(coins), 'coin')}, median diameter {np.median(diameters):.0f} px",
        count=len(coins),
        other_objects=len(objects) - len(coins),
        median_diameter_px=number(np.median(diameters)),
        smallest_diameter_px=number(diameters[0]),
        largest_diameter_px=number(diameters[-1]),
        diameters_px=[number(diameter) for diameter in diameters[:100]],
    )


def _label_objects(values: Floats) -> Labels:
    local = filters.gaussian(values, 1) - filters.gaussian(values, max(values.shape) / 20, mode="nearest")
    mask = ndi.binary_fill_holes(foreground(local))
    mask = morphology.opening(mask, morphology.disk(3))
    areas = np.bincount(measure.label(mask).ravel())[1:]
    if len(areas):
        mask = morphology.remove_small_objects(mask, max_size=int(0.2 * np.median(areas)))
    return split_touching(mask, min_distance=max(5, round(0.02 * max(values.shape))), smoothing=2)


def measure_grains(image: Image, report: ReportProgress) -> Result:
    """Measure the grain sizes of gravel or sand seen from above.

    Grains are brighter than the shade between them. The method uses a threshold at the local mean, and then a
    watershed of the distance transform. Sizes are diameters of a circle of equal area. D10, D50 and D90 are
    the usual percentiles, weighted by the area of the grains. The sizes exclude grains at the border.
    """
    values = gray(image)
    smooth = filters.gaussian(values, 1.5)
    report(0.2, "smoothed")
    labels = _grains(smooth)
    report(0.6, f"{labels.max()} grains found")
    whole = segmentation.clear_border(labels)
    areas = np.bincount(whole.ravel())[1:]
    areas = np.sort(areas[areas > 0])
    if len(areas) < 20:
        raise ValueError(f"{len(areas)} grains are too few for a distribution")
    sizes = np.sqrt(4 * areas / np.pi)
    share = np.cumsum(areas) / areas.sum()
    d10, d50, d90 = (sizes[np.searchsorted(share, part)] for part in (0.1, 0.5, 0.9))
    report(0.8, "sizes sorted")
    return finish(
        report,
        f"{labels.max()} grains, D50 {d50:.0f} px",
        count=int(labels.max()),
        d10_px=number(d10),
        d50_px=number(d50),
        d90_px=number(d90),
        uniformity_d90_to_d10=number(d90 / d10, 2),
        covered_fraction=number((labels > 0).mean(), 4),
    )


def _grains(smooth: Floats) -> Labels:
    mask = smooth > filters.threshold_local(smooth, 51, "gaussian")
    mask = morphology.opening(morphology.remove_small_holes(mask, max_size=30), morphology.disk(2))
    mask = morphology.remove_small_objects(mask, max_size=30)
    return split_touching(mask, min_distance=5, smoothing=1.5)


def measure_texture(image: Image, report: ReportProgress) -> Result:
    """Describe a surface: contrast, regularity, grain and direction of its texture.

    The result has Haralick's features (1973) of the co-occurrence matrix, with 32 gray levels and neighbours
    in four directions, and the entropy of the uniform local binary patterns (Ojala 2002). Direction and
    coherence come from the structure tensor (Bigün & Granlund 1987). The coherence is 1 if there is only one
    direction, and 0 if there is none. Directions are those along the structure, anticlockwise from the
    horizontal.
    """
    values = gray(image)
    low, high = np.percentile(values, [1, 99])
    if high == low:
        raise ValueError("the picture is empty: all but a few pixels have the same value")
    levels = (np.clip((values - low) / (high - low), 0, 1) * 31).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    matrix = feature.graycomatrix(levels, [1, 4], angles, levels=32, symmetric=True, normed=True)
    haralick = {
        name: float(feature.graycoprops(matrix, name)[0].mean())
        for name in ("contrast", "homogeneity", "energy", "correlation")
    }
    report(0.4, "neighbours counted")
    patterns = feature.local_binary_pattern(levels, 16, 2, method="uniform")
    shares = np.bincount(patterns.astype(int).ravel()) / patterns.size
    entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    report(0.7, "patterns counted")
    rows, both, columns = (
        float(part.mean()) for part in feature.structure_tensor(values, sigma=2, order="rc")
    )
    # The angle of the gradient. It grows clockwise, because rows are numbered from top to bottom.
    across = 0.5 * np.arctan2(2 * both, columns - rows)
    direction = (90 - np.degrees(across)) % 180
    coherence = np.hypot(columns - rows, 2 * both) / max(rows + columns, 1e-12)
    return finish(
        report,
        f"contrast {haralick['contrast']:.0f}, homogeneity {haralick['homogeneity']:.2f}, "
        f"direction {direction:.0f}° (coherence {coherence:.2f})",
        **{name: number(value, 4) for name, value in haralick.items()},
        pattern_entropy_bits=number(entropy, 3),
        direction_degrees=number(direction),
        coherence=number(coherence, 3),
    )


def measure_outline(image: Image, report: ReportProgress) -> Result:
    """Measure the shape of the one large object on an even background.

    The object is the largest piece above Otsu's threshold (1979), with its holes. The perimeter follows
    Crofton's formula. The solidity is the object's share of its convex hull. The skeleton is that of Zhang &
    Suen (1984).
    """
    values = gray(image)
    labels = measure.label(foreground(values))
    report(0.3, quantity(labels.max(), "piece"))
    pieces = measure.regionprops(labels)
    largest = max(pieces, key=lambda piece: piece.area, default=None)
    if largest is None or largest.area < 0.01 * values.size:
        raise ValueError("found no large object")
    report(0.6, f"the largest has {largest.area:.0f} px")
    skeleton = morphology.skeletonize(largest.image)
    holes = 1 - int(measure.euler_number(largest.image, connectivity=2))
    report(0.8, "skeleton found")
    height, width = largest.image.shape
    return finish(
        report,
        f"{width} × {height} px, area {largest.area:.0f} px, solidity {largest.solidity:.2f}",
        width_px=width,
        height_px=height,
        area_px=int(largest.area),
        perimeter_px=number(largest.perimeter_crofton),
        solidity=number(largest.solidity, 3),
        holes=holes,
        skeleton_length_px=int(skeleton.sum()),
        pieces=len(pieces),
    )
