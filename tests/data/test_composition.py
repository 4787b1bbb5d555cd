from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from glipv2_d2.data.composition import MIN_VISIBLE_PIXELS, Cutout, compose_scene
from glipv2_d2.data.drawn import drawn_cutouts


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
        assert item.mask.sum() >= MIN_VISIBLE_PIXELS
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
