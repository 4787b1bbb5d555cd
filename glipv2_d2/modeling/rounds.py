"""Images of one batch that are asked several things: read once, and asked in rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.structures import ImageList
from torch import Tensor

from glipv2_d2.structures import Prompt, fields


def different_images(inputs: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """Inputs without those whose image, the same tensor, is that of one before.

    Returns:
        K inputs, and for each of the given ones which of the K has its image.
    """
    first_of: dict[int, dict[str, Any]] = {}
    for x in inputs:
        first_of.setdefault(id(x[fields.IMAGE]), x)
    row_of = {image: row for row, image in enumerate(first_of)}
    return list(first_of.values()), [row_of[id(x[fields.IMAGE])] for x in inputs]


def rounds(prompts_per_image: list[list[Prompt]]) -> Iterator[tuple[list[int], list[Prompt]]]:
    """Ask the first prompt of every image, then the second of those that have one, and so on.

    >>> a, b, c = (Prompt(text, (), ()) for text in "abc")
    >>> [(images, [p.text for p in asked]) for images, asked in rounds([[a], [b, c]])]
    [([0, 1], ['a', 'b']), ([1], ['c'])]
    """
    for k in range(max(map(len, prompts_per_image), default=0)):
        indices = [i for i, prompts in enumerate(prompts_per_image) if k < len(prompts)]
        yield indices, [prompts_per_image[i][k] for i in indices]


def select_sizes(images: ImageList, indices: list[int]) -> ImageList:
    """Some images of the batch for those who ask for their sizes only: the pixels are all there."""
    return ImageList(images.tensor, [images.image_sizes[i] for i in indices])


def select_images(features: dict[str, Tensor], indices: list[int]) -> dict[str, Tensor]:
    """The maps of some images of the batch, any of them several times; no copy when it is all."""
    if all(list(range(len(level))) == indices for level in features.values()):
        return features
    return {name: level[indices] for name, level in features.items()}
