"""Recolour a cut-out in a named colour, with its shading kept."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Colour name -> hue in degrees, saturation and brightness (0 to 1) of the brightest parts.
TINTS: dict[str, tuple[float, float, float]] = {
    "red": (2, 0.9, 0.9),
    "orange": (27, 0.95, 1.0),
    "yellow": (54, 0.9, 1.0),
    "green": (120, 0.8, 0.75),
    "blue": (220, 0.85, 0.95),
    "purple": (278, 0.7, 0.75),
    "pink": (335, 0.42, 1.0),
    "brown": (24, 0.7, 0.5),
    "black": (0, 0.0, 0.2),
    "white": (0, 0.0, 1.0),
    "gray": (0, 0.0, 0.58),
}
# The darkest parts keep this share of the brightness.
DARKEST_SHARE = 0.35
# Shading of white above the darkest: deeper shadows would be gray.
DARKEST_SHARE_OF_WHITE = 0.7


def tint(image: Image.Image, color: str) -> Image.Image:
    """An RGBA image in another colour: only its opacity and shading are kept.

    Args:
        color: one of :data:`TINTS`.
    """
    hue, saturation, brightness = TINTS[color]
    light = np.asarray(image.convert("L")).astype(np.float64)
    visible = np.asarray(image.getchannel("A")) > 0
    low, high = np.percentile(light[visible], (2, 98)) if visible.any() else (0.0, 255.0)
    shading = ((light - low) / max(high - low, 1.0)).clip(0, 1)
    darkest = DARKEST_SHARE_OF_WHITE if color == "white" else DARKEST_SHARE
    value = brightness * (darkest + (1 - darkest) * shading)
    channels = (
        np.full_like(value, hue / 360 * 255),
        np.full_like(value, saturation * 255),
        value * 255,
    )
    hsv = np.stack(channels, axis=-1).round().astype(np.uint8)
    tinted = Image.fromarray(hsv, mode="HSV").convert("RGB")
    tinted.putalpha(image.getchannel("A"))
    return tinted
