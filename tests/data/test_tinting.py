from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from glipv2_d2.data.tinting import DARKEST_SHARE, TINTS, tint


def ramp(color: tuple[int, int, int]) -> Image.Image:
    """From black to a colour, opaque in the upper half."""
    pixels = np.zeros((20, 64, 4))
    pixels[..., :3] = np.linspace(0, 1, 64)[None, :, None] * color
    pixels[:10, :, 3] = 255
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


@pytest.mark.parametrize("color", TINTS)
def test_a_tint_has_its_colour_whatever_was_there(color: str) -> None:
    hue, saturation, value = TINTS[color]
    expected = np.array(colorsys.hsv_to_rgb(hue / 360, saturation, value)) * 255
    for original in ((255, 255, 255), (40, 200, 90)):
        brightest = np.asarray(tint(ramp(original), color))[0, -1, :3]
        assert np.abs(brightest - expected).max() < 6


def test_shading_is_kept() -> None:
    light = np.asarray(tint(ramp((200, 180, 160)), "red"))[0, :, 0].astype(int)
    assert (np.diff(light) >= 0).all()
    assert light[0] == pytest.approx(DARKEST_SHARE * light[-1], abs=2)


def test_opacity_is_kept() -> None:
    image = ramp((90, 90, 200))
    assert tint(image, "green").getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_all_tints_are_far_apart() -> None:
    image = ramp((255, 255, 255))
    colors = [np.asarray(tint(image, name))[0, -1, :3].astype(float) for name in TINTS]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[i + 1 :]]
    assert min(distances) > 70
