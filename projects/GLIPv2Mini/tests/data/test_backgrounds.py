"""Photographs behind the scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glipv2_mini.data.backgrounds import SCIKIT_IMAGE, PhotoBackground, background_photos


def write_photos(root: Path, use: str) -> None:
    """Stand-ins for the packages' photographs: red inside the region, blue outside."""
    for photo in background_photos():
        if photo.use == use and photo.package != SCIKIT_IMAGE:
            path = root / photo.file
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (200, 100), "blue")
            x1, y1, x2, y2 = photo.region
            image.paste((255, 0, 0), (int(200 * x1), int(100 * y1), int(200 * x2), int(100 * y2)))
            image.save(path, quality=100, subsampling=0)


def test_no_photo_is_behind_training_and_test_scenes() -> None:
    uses = {
        use: {photo.file for photo in background_photos() if photo.use == use}
        for use in ("train", "test")
    }
    assert len(uses["train"] | uses["test"]) == len(background_photos())
    assert min(map(len, uses.values())) >= 7


def test_only_the_region_of_a_photo_is_used(tmp_path: Path) -> None:
    write_photos(tmp_path, "train")
    background = PhotoBackground("train", tmp_path, photo_probability=1.0)
    for seed in range(30):
        pixels = np.asarray(background((48, 32), np.random.default_rng(seed))).astype(int)
        assert pixels.shape == (32, 48, 3)
        # Textures of scikit-image are gray or nearly so; blue must not dominate.
        assert (pixels[..., 2] - pixels[..., 0]).mean() < 40


def test_drawn_backgrounds_need_no_photo() -> None:
    background = PhotoBackground("test", photo_probability=0.0)
    assert background((40, 30), np.random.default_rng(0)).size == (40, 30)


def test_a_missing_photo_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mate-backgrounds"):
        PhotoBackground("train", tmp_path, photo_probability=1.0)((9, 9), np.random.default_rng(0))
