"""The analyses of the laboratory, on real pictures with known contents and on drawn pictures."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from broker.demo.analyses import ANALYSES, Image, load_image
from broker.demo.images import PICTURES, Picture, path_of

SIDE = 240


class Progress:
    """Stores the reports of an analysis."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, str]] = []

    def __call__(self, progress: float, message: str) -> None:
        self.steps.append((progress, message))


def analyse(name: str, image: Image) -> dict[str, Any]:
    return ANALYSES[name](image, Progress())


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], tuple[dict[str, Any], Progress]]:
    """Run every task of the catalogue once."""
    done = {}
    for picture in PICTURES:
        progress = Progress()
        result = ANALYSES[picture.needs["analysis"]](load_image(path_of(picture)), progress)
        done[picture.file, picture.needs["analysis"]] = (result, progress)
    return done


def disks(centres: list[tuple[int, int]], radius: float, side: int = SIDE) -> Image:
    rows, columns = np.mgrid[:side, :side]
    image = np.full((side, side), 0.2)
    for row, column in centres:
        image[np.hypot(rows - row, columns - column) <= radius] = 0.8
    return image + np.random.default_rng(1).normal(0, 0.01, image.shape)


# The catalogue


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: f"{p.file}-{p.needs['analysis']}")
def test_every_picture_exists_and_its_analysis_is_known(picture: Picture) -> None:
    assert path_of(picture).is_file()
    assert picture.needs["analysis"] in ANALYSES
    assert json.loads(json.dumps(picture.needs)) == picture.needs


def test_every_analysis_has_a_picture_and_no_task_is_duplicated() -> None:
    assert {picture.needs["analysis"] for picture in PICTURES} == set(ANALYSES)
    assert len({(picture.file, picture.needs["analysis"]) for picture in PICTURES}) == len(PICTURES)


# All results


def test_progress_rises_to_one_and_ends_with_the_summary(results: Any) -> None:
    for task, (result, progress) in results.items():
        amounts = [amount for amount, _ in progress.steps]
        assert len(amounts) >= 3, task
        assert all(0 <= earlier < later <= 1 for earlier, later in pairwise(amounts)), task
        assert progress.steps[-1] == (1.0, result["summary"])


def test_results_are_plain_json(results: Any) -> None:
    for result, _ in results.values():
        assert json.loads(json.dumps(result, allow_nan=False)) == result


# Known contents of the real pictures, counted by eye on overlays


def test_coins_picture_has_24_coins(results: Any) -> None:
    coins, _ = results["coins.png", "count_coins"]
    assert coins["count"] == 24
    assert coins["summary"] == "24 coins, median diameter 44 px"
    assert coins["largest_diameter_px"] == pytest.approx(63, abs=2)


def test_hologram_shows_one_round_cell(results: Any) -> None:
    cell, _ = results["cell.png", "count_cells"]
    assert cell["count"] == 1
    assert cell["centres_px"][0] == pytest.approx([428, 374], abs=2)
    assert cell["median_diameter_px"] == pytest.approx(127, abs=3)
    assert cell["median_circularity"] > 0.95


def test_section_is_half_brown_and_full_of_nuclei(results: Any) -> None:
    assert results["ihc.png", "segment_stain"][0]["dab_area_fraction"] == pytest.approx(0.48, abs=0.06)
    assert 280 < results["ihc.png", "count_nuclei"][0]["count"] < 400


def test_photograph_shows_a_left_eye(results: Any) -> None:
    disc, _ = results["retina.jpg", "locate_disc"]
    assert disc["eye"] == "left"
    assert disc["disc_centre_px"] == pytest.approx([218, 655], abs=30)
    assert disc["fovea_px"] == pytest.approx([708, 702], abs=20)
    # Anatomy: the fovea lies two and a half disc diameters away.
    assert disc["disc_to_fovea_px"] / disc["disc_diameter_px"] == pytest.approx(2.5, abs=0.3)


def test_vessels_cover_a_tenth_of_the_retina(results: Any) -> None:
    vessels, _ = results["retina.jpg", "measure_vessels"]
    assert vessels["vessel_area_fraction"] == pytest.approx(0.11, abs=0.02)
    assert 80 < vessels["branch_points"] < 150
    # A detail with three vessels, one of which forks.
    assert results["microaneurysms.png", "measure_vessels"][0]["branch_points"] == 1


def test_two_microaneurysms_are_found_and_no_vessels(results: Any) -> None:
    lesions, _ = results["microaneurysms.png", "find_lesions"]
    assert [lesion["centre_px"] for lesion in lesions["lesions"]] == [
        pytest.approx([16, 23], abs=1.5),
        pytest.approx([49, 71], abs=1.5),
    ]


def test_large_spiral_is_the_brightest_source_of_the_deep_field(results: Any) -> None:
    sources, _ = results["hubble_deep_field.jpg", "find_sources"]
    assert 1500 < sources["count"] < 2200
    assert sources["brightest_position_px"] == pytest.approx([123, 401], abs=3)


def test_moon_is_lit_from_the_left_and_has_one_large_crater(results: Any) -> None:
    craters, _ = results["moon.png", "find_craters"]
    assert craters["light_from_degrees"] == 180
    assert craters["widest_position_px"] == pytest.approx([120, 87], abs=3)
    assert craters["widest_diameter_px"] == pytest.approx(51, abs=4)
    assert 15 <= craters["count"] <= 30


def test_picture_of_a_page_has_eight_lines(results: Any) -> None:
    layout, _ = results["page.png", "measure_layout"]
    assert layout["words_per_line"][:6] == [2, 10, 9, 7, 11, 4]
    assert layout["lines"] == 8
    assert abs(layout["skew_degrees"]) <= 1


def test_global_threshold_would_lose_a_fifth_of_the_page_to_shadow(results: Any) -> None:
    page, _ = results["page.png", "threshold_page"]
    assert page["ink_fraction"] == pytest.approx(0.13, abs=0.02)
    assert page["shadow_fraction"] > 0.2


def test_bricks_have_a_direction_and_grass_has_none(results: Any) -> None:
    brick, _ = results["brick.png", "measure_texture"]
    grass, _ = results["grass.png", "measure_texture"]
    assert brick["direction_degrees"] == pytest.approx(90, abs=5)
    assert brick["coherence"] > 0.5 > 0.15 > grass["coherence"]
    assert grass["contrast"] > brick["contrast"]


def test_gravel_has_a_narrow_distribution_of_sizes(results: Any) -> None:
    grains, _ = results["gravel.png", "measure_grains"]
    assert 650 < grains["count"] < 850
    assert 8 < grains["d10_px"] < grains["d50_px"] < grains["d90_px"] < 30


def test_horse_has_one_hole_between_its_legs(results: Any) -> None:
    horse, _ = results["horse.png", "measure_outline"]
    assert (horse["pieces"], horse["holes"]) == (1, 1)
    assert (horse["width_px"], horse["height_px"]) == pytest.approx((371, 304), abs=3)


# Drawn pictures


@settings(max_examples=15, deadline=None)
@given(
    places=st.lists(st.integers(0, 24), min_size=1, max_size=9, unique=True),
    radius=st.integers(8, 18),
    dark=st.booleans(),
)
def test_all_drawn_cells_and_coins_are_counted(places: list[int], radius: int, dark: bool) -> None:
    image = disks([(24 + 48 * (place // 5), 24 + 48 * (place % 5)) for place in places], radius)
    cells = analyse("count_cells", 1 - image if dark else image)
    assert cells["count"] == len(places)
    assert cells["median_diameter_px"] == pytest.approx(2 * radius + 1, abs=2)
    assert analyse("count_coins", image)["count"] == len(places)


def test_touching_cells_are_separated_and_those_at_the_border_are_counted() -> None:
    result = analyse("count_cells", disks([(60, 60), (60, 97), (150, 150), (0, 200)], 20))
    assert (result["count"], result["touching_border"]) == (4, 1)


def test_object_that_is_not_round_is_not_a_coin() -> None:
    image = disks([(60, 60), (60, 150)], 20)
    image[150:160, 40:200] = 0.8
    result = analyse("count_coins", image)
    assert (result["count"], result["other_objects"]) == (2, 1)


@settings(max_examples=10, deadline=None)
@given(places=st.lists(st.integers(0, 35), min_size=1, max_size=20, unique=True), seed=st.integers(0, 1000))
def test_all_drawn_stars_are_found(places: list[int], seed: int) -> None:
    image = np.zeros((SIDE, SIDE))
    for rank, place in enumerate(places):
        image[20 + 40 * (place // 6), 20 + 40 * (place % 6)] = 20.0 if rank == 0 else 10.0
    image = ndi.gaussian_filter(image, 1.5) + np.random.default_rng(seed).normal(0.1, 0.01, image.shape)
    result = analyse("find_sources", np.clip(image, 0, 1))
    assert result["count"] == len(places)
    column, row = result["brightest_position_px"]
    assert (row, column) == pytest.approx((20 + 40 * (places[0] // 6), 20 + 40 * (places[0] % 6)), abs=1)


def test_sky_without_stars_has_a_result() -> None:
    image = np.random.default_rng(3).normal(0.1, 0.01, (SIDE, SIDE))
    assert analyse("find_sources", image)["count"] == 0


@pytest.mark.parametrize("quarter_turns", range(4))
def test_direction_of_light_turns_with_the_picture(quarter_turns: int) -> None:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = np.random.default_rng(5).normal(0.5, 0.01, (SIDE, SIDE))
    for row, column, radius in [(50, 60, 6), (120, 180, 12), (190, 80, 20)]:
        inside = np.hypot(rows - row, columns - column) <= radius
        image[inside] += 0.3 * (columns - column)[inside] / radius  # dark on the left: light from the left
    result = analyse("find_craters", np.rot90(image, quarter_turns))
    assert result["count"] == 3
    assert result["light_from_degrees"] == (180 + 90 * quarter_turns) % 360
    assert result["widest_diameter_px"] == 40


@pytest.mark.parametrize("degrees", [-4, 0, 3])
def test_skew_lines_and_words_of_a_drawn_page_are_measured(degrees: int) -> None:
    image = np.full((300, 400), 0.9)
    for line in range(6):
        for word in range(4):
            for letter in range(5):
                row, column = 40 + 40 * line, 30 + 85 * word + 10 * letter
                image[row : row + 12, column : column + 7] = 0.1
    turned = ndi.rotate(image, -degrees, reshape=False, order=1, cval=0.9)  # clockwise: falling to the right
    result = analyse("measure_layout", turned)
    assert (result["lines"], result["words"]) == (6, 24)
    assert result["skew_degrees"] == pytest.approx(degrees, abs=0.5)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_direction_of_stripes_is_measured(degrees: int) -> None:
    rows, columns = np.mgrid[:128, :128]
    angle = np.radians(degrees)
    stripes = 0.5 + 0.4 * np.sin((columns * np.sin(angle) + rows * np.cos(angle)) / 2)
    result = analyse("measure_texture", stripes)
    assert (result["direction_degrees"] - degrees + 90) % 180 - 90 == pytest.approx(0, abs=2)
    assert result["coherence"] > 0.9


def test_cross_of_vessels_has_one_branch_point() -> None:
    image = np.full((160, 160), 0.6)
    image[78:82, :] = image[:, 78:82] = 0.3
    result = analyse("measure_vessels", image)
    assert result["branch_points"] == 1
    assert result["skeleton_length_px"] == pytest.approx(320, abs=20)


def test_ring_has_a_hole() -> None:
    image = disks([(120, 120)], 60)
    image[100:140, 100:140] = 0.2
    assert analyse("measure_outline", image)["holes"] == 1


# Pixel formats


@pytest.mark.parametrize(
    "convert",
    [
        lambda gray: (gray * 255).astype(np.uint8),
        lambda gray: (gray * 65535).astype(np.uint16),
        lambda gray: (gray * 4000).astype(np.float32),
        lambda gray: gray > 0.5,
        lambda gray: gray[..., np.newaxis],
        lambda gray: np.stack([gray, np.ones_like(gray)], axis=2),
        lambda gray: np.stack([gray] * 3, axis=2),
        lambda gray: np.stack([gray, gray, gray, np.ones_like(gray)], axis=2),
    ],
    ids=["8 bit", "16 bit", "float", "bool", "one channel", "gray alpha", "RGB", "RGBA"],
)
def test_every_pixel_format_gives_the_same_count(convert: Any) -> None:
    gray = np.clip(disks([(60, 60), (60, 150), (170, 120)], 20), 0, 1)
    assert analyse("count_cells", convert(gray))["count"] == 3


# Refused pictures


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize(
    "image",
    [
        np.full((64, 64), 0.5),
        np.zeros((64, 64, 3), dtype=np.uint8),
        np.eye(8),
        np.full((64, 64), np.nan),
        np.zeros((3, 64, 64, 3)),
        np.zeros(64),
        np.full((64, 64), "x"),
    ],
    ids=["flat", "black", "tiny", "NaN", "stack", "line", "text"],
)
def test_array_that_is_not_a_picture_is_refused(name: str, image: Image) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        analyse(name, image)


NOISE = np.random.default_rng(7).normal(0.5, 0.1, (128, 128)).clip(0, 1)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("count_cells", "gravel.png"),
        ("measure_vessels", "brick.png"),
        ("find_craters", "page.png"),
        ("find_sources", "moon.png"),
        ("count_coins", "grass.png"),
        ("segment_stain", "coins.png"),
        ("segment_stain", "retina.jpg"),
        ("count_nuclei", "hubble_deep_field.jpg"),
        ("locate_disc", "microaneurysms.png"),
        ("locate_disc", "ihc.png"),
        ("find_sources", "ihc.png"),
        ("measure_layout", "brick.png"),
        ("threshold_page", "cell.png"),
        ("threshold_page", "coins.png"),
        ("measure_grains", "horse.png"),
        ("measure_outline", "gravel.png"),
    ],
)
def test_picture_of_another_kind_is_refused(name: str, file: str) -> None:
    image = load_image(path_of(Picture(file, "", {})))
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        analyse(name, image)


@pytest.mark.parametrize("name", ["count_cells", "count_coins", "measure_outline", "find_craters"])
def test_noise_contains_no_objects(name: str) -> None:
    with pytest.raises(ValueError, match=r"is distinct|found no"):
        analyse(name, NOISE)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_error_about_a_broken_file_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png"):
        load_image(file)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.png"):
        load_image(tmp_path / "gone.png")
