"""The basic colours of boxes, as evidence beside that of the classifiers.

A pixel has each of the eleven basic colours with a probability, by its distance to examples of the
colours in CIELAB (our choice).

N: images. H, W: size of the network input in pixels. A: boxes of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.layers.dtypes import full_precision
from glipv2_mini.text.phrases import COLOR_NAMES

# Colour -> examples, R, G, B in sRGB.
_EXAMPLES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((0, 0, 0), (25, 25, 28), (40, 38, 36)),
    "blue": (
        (0, 0, 255),
        (30, 80, 170),
        (100, 160, 220),
        (20, 30, 90),
        (0, 180, 220),
        (70, 90, 120),
    ),
    "brown": ((120, 70, 30), (90, 55, 30), (150, 100, 60), (70, 45, 30)),
    "gray": ((80, 80, 80), (110, 110, 110), (140, 140, 140), (170, 170, 170)),
    "green": ((0, 128, 0), (60, 100, 40), (120, 180, 50), (40, 70, 30), (150, 200, 120)),
    "orange": ((255, 140, 0), (230, 110, 30), (255, 170, 70), (200, 120, 30)),
    "pink": ((255, 150, 180), (255, 105, 180), (235, 180, 190)),
    "purple": ((128, 0, 128), (100, 60, 150), (170, 110, 190)),
    "red": ((220, 20, 30), (160, 25, 30), (255, 60, 50), (120, 15, 20)),
    "white": ((255, 255, 255), (225, 225, 222)),
    "yellow": ((255, 230, 0), (225, 195, 40), (250, 240, 130), (190, 165, 50)),
}
NUM_COLORS = len(COLOR_NAMES)
# In units of CIELAB: colours that differ by less are alike. Light and shade change the lightness
# of a thing more than its hue.
_TOLERANCE = 10.0
_LIGHTNESS_WEIGHT = 0.6
# The share of each colour in photos, about: a gray car is mostly gray, a red one hardly half red.
_USUAL_SHARE = {
    "black": 0.2,
    "blue": 0.07,
    "brown": 0.2,
    "gray": 0.3,
    "green": 0.12,
    "orange": 0.04,
    "pink": 0.03,
    "purple": 0.02,
    "red": 0.04,
    "white": 0.12,
    "yellow": 0.03,
}
# Added to shares: a few pixels are no evidence.
_MIN_SHARE = 0.03
# Pixels of the network input per pixel of the colour maps.
_STRIDE = 4
# Of a box's width and height: its border shows what is behind the object.
_CENTRAL_SHARE = 0.6
# sRGB of linear light, and linear light to CIE XYZ relative to the white point D65.
_TO_XYZ = (
    (0.4124 / 0.9505, 0.3576 / 0.9505, 0.1805 / 0.9505),
    (0.2126, 0.7152, 0.0722),
    (0.0193 / 1.089, 0.1192 / 1.089, 0.9505 / 1.089),
)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """(..., 3) sRGB in 0..1 -> CIELAB, lightness in 0..100 (IEC 61966-2-1, CIE 15).

    >>> rgb_to_lab(torch.tensor([1.0, 1.0, 1.0])).round(decimals=1).tolist()[0]
    100.0
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ rgb.new_tensor(_TO_XYZ).T
    root = torch.where(xyz > 216 / 24389, xyz.clamp(min=1e-6) ** (1 / 3), xyz * 841 / 108 + 4 / 29)
    x, y, z = root.unbind(dim=-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def color_probabilities(rgb: Tensor) -> Tensor:
    """(..., 3) sRGB in 0..1 -> (..., 11) probabilities of :data:`COLOR_NAMES`.

    >>> COLOR_NAMES[int(color_probabilities(torch.tensor([0.8, 0.1, 0.1])).argmax())]
    'red'
    """
    examples = rgb.new_tensor([rgb for name in COLOR_NAMES for rgb in _EXAMPLES[name]]) / 255
    weights = rgb.new_tensor([_LIGHTNESS_WEIGHT, 1, 1])
    lab, lab_of_examples = rgb_to_lab(rgb) * weights, rgb_to_lab(examples) * weights
    distances = torch.cdist(lab.reshape(1, -1, 3), lab_of_examples[None])[0]
    probabilities = (-0.5 * (distances / _TOLERANCE) ** 2).softmax(dim=-1)
    sizes = [len(_EXAMPLES[name]) for name in COLOR_NAMES]
    colors = [part.sum(dim=-1) for part in probabilities.split(sizes, dim=-1)]
    return torch.stack(colors, dim=-1).reshape(*rgb.shape[:-1], NUM_COLORS)


def colors_of_boxes(pixels: Tensor, boxes: Tensor) -> Tensor:
    """(N, A, 11), the mean colour probabilities of the central part of each box.

    Args:
        pixels: (N, 3, H, W), R, G, B, 0..255.
        boxes: (N, A, 4), XYXY in pixels; they may reach beyond the image.
    """
    small = F.avg_pool2d(full_precision(pixels), _STRIDE, ceil_mode=True)
    probabilities = color_probabilities(small.permute(0, 2, 3, 1).clamp(0, 255) / 255)
    height, width = small.shape[-2:]
    # Sums over all rectangles that start at the origin.
    sums = F.pad(probabilities.cumsum(dim=1).cumsum(dim=2), (0, 0, 1, 0, 1, 0)).flatten(1, 2)
    center, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    limit = boxes.new_tensor([width, height])
    low = ((center - size * _CENTRAL_SHARE / 2) / _STRIDE).floor().clamp(min=0)
    low = torch.minimum(low, limit - 1).long()
    high = ((center + size * _CENTRAL_SHARE / 2) / _STRIDE).ceil()
    high = torch.maximum(torch.minimum(high, limit).long(), low + 1)

    def sum_to(x: Tensor, y: Tensor) -> Tensor:
        index = (y * (width + 1) + x)[..., None].expand(-1, -1, NUM_COLORS)
        return sums.gather(1, index)

    (x1, y1), (x2, y2) = low.unbind(dim=-1), high.unbind(dim=-1)
    total = sum_to(x2, y2) - sum_to(x1, y2) - sum_to(x2, y1) + sum_to(x1, y1)
    return (total / ((x2 - x1) * (y2 - y1))[..., None]).clamp(0, 1)


def color_logits(color_probs: Tensor) -> Tensor:
    """(..., 11) shares -> how much more of each colour there is than usual, as a logarithm.

    >>> gray_with_red = torch.tensor([0.0, 0, 0, 0.6, 0, 0, 0, 0, 0.4, 0, 0])
    >>> COLOR_NAMES[int(color_logits(gray_with_red).argmax())]
    'red'
    """
    shares = full_precision(color_probs)
    usual = shares.new_tensor([_USUAL_SHARE[name] for name in COLOR_NAMES])
    return ((shares + _MIN_SHARE) / (usual + _MIN_SHARE)).log()
