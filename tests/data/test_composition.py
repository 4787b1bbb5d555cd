from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glipv2_d2.data.composition import (
    DRAWN_STYLE,
    PHOTO_STYLE,
    Cutout,
    Scene,
    SceneObject,
    compose_scene,
)
from glipv2_d2.data.drawn import drawn_cutouts
from glipv2_d2.data.tinting import TINTS


def scene(seed: int, cutouts: list[Cutout] | None = None):
    background = Image.new("RGB", (160, 120), (90, 90, 90))
    return compose_scene(cutouts or drawn_cutouts(), background, np.random.default_rng(seed))


def test_a_scene_is_a_function_of_its_seed() -> None:
    first, again, other = scene(5), scene(5), scene(6)
    assert np.array_equal(first.image, again.image)
    assert [item.name for item in first.objects] == [item.name for item in again.objects]
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("seed", range(8))
def test_every_object_is_annotated_and_visible(seed: int) -> None:
    """On a flat background, pixels that changed much belong to a mask or a soft edge."""
    reds = [Cutout(c.name, c.image) for c in drawn_cutouts() if c.name.startswith("red")]
    made = scene(seed, reds)
    pixels = np.asarray(made.image).astype(int)
    reddish = pixels[..., 0] - pixels[..., 2] > 60
    covered = np.zeros(reddish.shape, dtype=bool)
    for item in made.objects:
        assert item.mask.sum() >= DRAWN_STYLE.min_visible_pixels
        covered |= item.mask
    stray = reddish & ~covered
    assert stray.sum() < 0.1 * max(1, covered.sum())


@pytest.mark.parametrize("seed", range(4))
def test_masks_do_not_overlap(seed: int) -> None:
    masks = [item.mask for item in scene(seed).objects]
    assert np.sum(masks, axis=0).max() <= 1


def test_a_box_is_tight_around_its_mask() -> None:
    item = scene(3).objects[0]
    x1, y1, x2, y2 = item.box
    assert item.mask[y1:y2, x1:x2].sum() == item.mask.sum()
    for edge in (item.mask[y1], item.mask[y2 - 1], item.mask[:, x1], item.mask[:, x2 - 1]):
        assert edge.any()


def photo_scenes(count: int) -> list[Scene]:
    background = Image.new("RGB", (208, 156), (120, 120, 120))
    return [
        compose_scene(drawn_cutouts(), background, np.random.default_rng([7, seed]), PHOTO_STYLE)
        for seed in range(count)
    ]


@pytest.fixture(scope="module")
def photos() -> list[Scene]:
    return photo_scenes(120)


def longer_side(item: SceneObject) -> int:
    x1, y1, x2, y2 = item.box
    return max(x2 - x1, y2 - y1)


def test_photo_scenes_have_objects_of_all_sizes(photos: list[Scene]) -> None:
    sides = [longer_side(item) / 156 for made in photos for item in made.objects]
    assert min(sides) < 0.12
    assert max(sides) > 0.9


def test_some_objects_of_photo_scenes_are_cut_off(photos: list[Scene]) -> None:
    boxes = [item.box for made in photos for item in made.objects]
    cut = [x1 == 0 or y1 == 0 or x2 == 208 or y2 == 156 for x1, y1, x2, y2 in boxes]
    assert 0.15 < np.mean(cut) < 0.6


def test_about_a_quarter_of_the_objects_is_tinted(photos: list[Scene]) -> None:
    colors = [item.color for made in photos for item in made.objects]
    assert 0.15 < np.mean([color is not None for color in colors]) < 0.35
    assert set(colors) <= {None, *TINTS}


def test_about_a_third_of_the_scenes_of_several_objects_repeats_a_name(
    photos: list[Scene],
) -> None:
    names = [[item.name for item in made.objects] for made in photos if len(made.objects) > 1]
    assert 0.2 < np.mean([len(set(some)) < len(some) for some in names]) < 0.5


def test_photo_scenes_are_dark_and_bright(photos: list[Scene]) -> None:
    corners = [np.asarray(made.image)[:4, :4].mean() for made in photos]
    assert np.percentile(corners, 10) < 0.6 * 120
    assert np.percentile(corners, 90) > 1.25 * 120


def test_a_picture_without_colours_has_no_tints() -> None:
    style = replace(PHOTO_STYLE, grayscale_probability=1.0, tint_probability=1.0)
    background = Image.new("RGB", (208, 156), (120, 120, 120))
    made = compose_scene(drawn_cutouts(), background, np.random.default_rng(1), style)
    assert made.objects
    assert {item.color for item in made.objects} == {None}


def test_objects_of_one_name_hardly_overlap() -> None:
    """Many equal discs, each whole and as large as a third of the picture."""
    discs = [cutout for cutout in drawn_cutouts() if cutout.name == "red circle"]
    style = replace(PHOTO_STYLE, log_side=(-1.1, -1.0), outside=(0.0, 0.0), close_up_probability=0)
    background = Image.new("RGB", (208, 156), (120, 120, 120))
    for seed in range(12):
        made = compose_scene(discs, background, np.random.default_rng([2, seed]), style)
        areas = [int(item.mask.sum()) for item in made.objects]
        assert min(areas) >= 0.45 * max(areas)
