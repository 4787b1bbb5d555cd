"""What all prompts of one image found, as the one result that its caller gets."""

from __future__ import annotations

from typing import Any

from detectron2.structures import Instances

from glipv2_d2.modeling.postprocess import (
    DetectionsPerImage,
    among_best,
    paste_masks,
    to_instances,
)
from glipv2_d2.structures import Prompt, fields

Found = tuple[DetectionsPerImage, Prompt]
"""What one prompt found, and the prompt."""


def still_wanted(
    detections: DetectionsPerImage, earlier: list[Found], *, num_prompts: int, limit: int
) -> DetectionsPerImage:
    """Those detections of a prompt that :func:`image_results` may keep.

    The work that a mask takes would be wasted on the others.

    Args:
        earlier: what other prompts of the image have found.
        num_prompts: of the image.
        limit: see :func:`image_results`.
    """
    if num_prompts == 1 or limit < 0:
        return detections
    return among_best(detections, [others for others, _ in earlier], limit)


def image_results(
    x: dict[str, Any], found: list[Found], image_size: tuple[int, int], limit: int
) -> dict[str, Any]:
    """The detections of all prompts of an image, in the caller's pixels and classes.

    Args:
        x: the input dict.
        found: one per prompt; none: nothing was to be found.
        image_size: (height, width) of the network input without padding.
        limit: detections kept where there are several prompts; -1: all.

    Returns:
        ``instances`` and, for a caption, ``phrases`` (see structures.fields); no key where nothing
        was to be found.
    """
    if not found:
        return {}
    output_size = (x.get(fields.HEIGHT, image_size[0]), x.get(fields.WIDTH, image_size[1]))
    instances = Instances.cat(
        [
            to_instances(detections, image_size, output_size, prompt.classes)
            for detections, prompt in found
        ]
    )
    if len(found) > 1 and 0 <= limit < len(instances):
        instances = instances[instances.scores.topk(limit).indices]
    if instances.has("pred_masks"):
        instances = paste_masks(instances, image_size)
    results: dict[str, Any] = {fields.INSTANCES: instances}
    if fields.CAPTION in x:
        results[fields.PHRASES] = found[0][1].phrases
    return results
