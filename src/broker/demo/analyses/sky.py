"""The telescope: sources in a deep field, and craters on a moon."""

import numpy as np
from scipy import ndimage as ndi
from skimage import feature, measure, morphology, segmentation, transform

from broker.demo.analyses.picture import finish, gray, number
from broker.demo.analyses.types import Floats, Image, Labels, ReportProgress, Result

BACKGROUND_MESH_PX = 64
DETECTION_SIGMA = 5.0
CRATER_DIAMETERS_PX = (5.0, 6.5, 8.5, 11.0, 14.0, 18.0, 24.0, 31.0, 40.0, 52.0)


def find_sources(image: Image, report: ReportProgress) -> Result:
    """Count the stars and galaxies of a field of sky, and find the brightest.

    The method follows SExtractor (Bertin & Arnouts 1996). The background is a mesh of medians, and the noise
    is the median absolute deviation. A source has at least five pixels that exceed the noise five times in
    the smoothed picture. Touching sources are separated if the saddle between two peaks is at least a third
    below the lower peak. A flux is the sum of the gray values above the background, with full scale 1.
    """
    values = gray(image)
    background = _background(values)
    report(0.3, f"background {np.median(background):.3f} of full scale")
    above = values - background
    smooth = ndi.gaussian_filter(above, 1.0)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    grain = 1.4826 * np.median(np.abs(above - np.median(above)))
    # Smoothing reduces pure noise to 0.3 of its amplitude, or to 0.4 if the picture was compressed.
    if noise > 0.7 * grain:
        raise ValueError("the whole picture has structure: this is not a field of stars or galaxies")
    labels = _sources(smooth, max(DETECTION_SIGMA * noise, 1e-3))
    sources = measure.regionprops(labels, intensity_image=above)
    report(0.8, f"{len(sources)} sources found")
    measures = {
        "count": len(sources),
        "density_per_megapixel": number(1e6 * len(sources) / values.size, 0),
        "background_level": number(np.median(background), 4),
        "noise_level": number(grain, 4),
    }
    if not sources:
        return finish(report, "no source above the background", **measures)
    fluxes = np.array([source.area * source.intensity_mean for source in sources])
    first = sources[int(np.argmax(fluxes))]
    row, column = first.centroid_weighted
    return finish(
        report,
        f"{len(sources)} sources, brightest at ({column:.0f}, {row:.0f}) px",
        **measures,
        median_area_px=number(np.median([source.area for source in sources]), 0),
        brightest_position_px=[number(column), number(row)],
        brightest_flux=number(fluxes.max(), 2),
        brightest_share_of_flux=number(fluxes.max() / fluxes.sum(), 4),
    )


def _background(values: Floats) -> Floats:
    parts = [max(1, round(side / BACKGROUND_MESH_PX)) for side in values.shape]
    mesh = [
        [np.median(cell) for cell in np.array_split(band, parts[1], axis=1)]
        for band in np.array_split(values, parts[0], axis=0)
    ]
    smoothed = ndi.median_filter(np.array(mesh), 3)
    return np.asarray(transform.resize(smoothed, values.shape, order=1, mode="edge"))


def _sources(smooth: Floats, threshold: float) -> Labels:
    mask = morphology.remove_small_objects(smooth > threshold, max_size=4)
    # In the logarithm, the depth of a saddle relative to its peak is a plain difference.
    height = np.log(np.where(mask, smooth, threshold))
    dome = morphology.reconstruction(height - np.log(1.5), height)
    peaks = measure.label(morphology.local_maxima(dome) & mask, connectivity=2)
    return np.asarray(segmentation.watershed(-height, peaks, mask=mask), dtype=np.int32)


def find_craters(image: Image, report: ReportProgress) -> Result:
    """Find craters lit from the side, and the direction of the light.

    A bowl under a low sun is dark on the side of the sun and bright on the other. The method compares the
    picture with a disc of such a slope, at ten diameters (normalised cross-correlation, Lewis 1995). Matches
    above 0.7 with a contrast of eight times the noise are craters. If two overlap, the better match counts.
    The light comes from the direction in which craters match best, in steps of 30°, anticlockwise from the
    right. Hills would look like craters lit from the other side, so the picture must have more craters than
    hills. The result excludes faint craters and those at the border.
    """
    values = gray(image)
    flat = values - ndi.gaussian_filter(values, 30)
    noise = 1.4826 * np.median(np.abs(flat - np.median(flat)))
    azimuths = range(0, 360, 30)  # from the shade to the light, clockwise as rows go down
    votes = [_votes(values, azimuth) for azimuth in azimuths]
    if max(votes) == 0:
        raise ValueError("found no crater lit from the side")
    azimuth = azimuths[int(np.argmax(votes))]
    report(0.4, f"light from {(180 - azimuth) % 360}°")
    diameters = [diameter for diameter in CRATER_DIAMETERS_PX if diameter < min(values.shape) / 4]
    matches = np.stack([_match(values, diameter, azimuth) for diameter in diameters])
    report(0.8, f"{len(diameters)} diameters compared")
    craters = _craters(values, matches, diameters, azimuth, 8 * noise)
    widest = max(craters, key=lambda crater: crater[2], default=None)
    return finish(
        report,
        f"{len(craters)} craters" + (f", the widest {widest[2]:.0f} px" if widest else ""),
        count=len(craters),
        light_from_degrees=(180 - azimuth) % 360,
        median_diameter_px=number(np.median([crater[2] for crater in craters])) if craters else None,
        widest_diameter_px=number(widest[2]) if widest else None,
        widest_position_px=[widest[1], widest[0]] if widest else None,
        density_per_megapixel=number(1e6 * len(craters) / values.size, 0),
    )


def _bowl(diameter: float, azimuth: float) -> Floats:
    half = int(0.8 * diameter)
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    slope = columns * np.cos(np.radians(azimuth)) + rows * np.sin(np.radians(azimuth))
    return np.where(np.hypot(rows, columns) <= diameter / 2, slope / (diameter / 2), 0.0)


def _match(values: Floats, diameter: float, azimuth: float) -> Floats:
    return np.asarray(
        feature.match_template(values, _bowl(diameter, azimuth), pad_input=True, mode="reflect")
    )


def _votes(values: Floats, azimuth: float) -> float:
    """Return a score of the match with craters of all sizes under light from a direction."""
    sizes = (d for d in CRATER_DIAMETERS_PX[2::3] if d < min(values.shape) / 4)
    return float(sum((np.maximum(_match(values, d, azimuth) - 0.7, 0)).sum() / d**2 for d in sizes))


def _craters(
    values: Floats, matches: Floats, diameters: list[float], azimuth: float, contrast: float
) -> list[tuple[int, int, float]]:
    """Return row, column and diameter of each crater, the best match first."""
    best, which = matches.max(axis=0), matches.argmax(axis=0)
    places = feature.peak_local_max(best, min_distance=3, threshold_abs=0.7, exclude_border=False)
    craters: list[tuple[int, int, float]] = []
    for row, column in sorted(places.tolist(), key=lambda place: -best[place[0], place[1]]):
        diameter = diameters[which[row, column]]
        bowl = _bowl(diameter, azimuth)
        half = bowl.shape[0] // 2
        window = values[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        if window.shape != bowl.shape or window[bowl > 0.3].mean() - window[bowl < -0.3].mean() < contrast:
            continue
        if all(np.hypot(row - r, column - c) > max(diameter, d) / 2 for r, c, d in craters):
            craters.append((row, column, diameter))
    return craters
