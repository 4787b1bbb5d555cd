"""Images and a prompt in, boxes out.

predictor = Predictor("configs/mini/glipv2_mini.yaml", "glipv2_d2/assets/glipv2_mini.pth")
prediction = predictor.predict("photo.jpg", classes=["cat", "coffee cup"])
print(prediction.labels, prediction.instances.scores)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from glipv2_d2.data.resize import build_augmentations
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.tuning import load_model
from glipv2_d2.images import IMAGE_SOURCES, ChannelOrder, ImageSource, load_image
from glipv2_d2.structures import fields
from glipv2_d2.structures.language import Span
from glipv2_d2.text.noun_phrases import noun_phrases

logger = logging.getLogger(__name__)

Phrase = str | Sequence[Span]
"""A phrase of a caption: its words, or the character spans [start, end) that spell it."""

ClassNames = Sequence[str] | Sequence[Sequence[str]]
"""What to look for: one list of names for all images, or one list per image."""


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        instances: ``pred_boxes`` (XYXY, pixels of the original image), ``scores`` (0..1, best
            first) and ``pred_classes`` (index in ``names``), on the CPU.
        names: the class names that were asked, or the phrases of the caption.
        image_size: (height, width) of the original image.
    """

    instances: Instances
    names: list[str]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def labels(self) -> list[str]:
        """The name of each detection."""
        return [self.names[index] for index in self.instances.pred_classes.tolist()]

    def above(self, threshold: float) -> Prediction:
        """The detections with a score of at least ``threshold``."""
        return replace(self, instances=self.instances[self.instances.scores >= threshold])

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Rows of a COCO result file; ``bbox`` is XYWH, ``category_id`` the index in ``names``."""
        boxes = self.instances.pred_boxes.tensor.numpy()
        boxes_xywh = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        return [
            {
                "image_id": image_id,
                "category_id": class_index,
                "category_name": self.names[class_index],
                "bbox": box,
                "score": score,
            }
            for class_index, box, score in zip(
                self.instances.pred_classes.tolist(),
                boxes_xywh,
                self.instances.scores.tolist(),
                strict=True,
            )
        ]


class Predictor:
    """A model with its weights, ready to be asked."""

    def __init__(
        self,
        config: str | Path | CfgNode,
        weights: str | Path | None = None,
        *,
        delta: str | Path | None = None,
        device: str | torch.device | None = None,
        opts: Sequence[Any] = (),
    ) -> None:
        """Build the model and load its weights.

        Args:
            config: a YAML file or a config.
            weights: a checkpoint of ours or a released GLIP file; default ``MODEL.WEIGHTS``.
            delta: what a fine-tuning changed in these weights; default ``MODEL.TUNING.DELTA``.
            device: default ``MODEL.DEVICE``, or the CPU where that is CUDA and there is none.
            opts: config keys and values in turn, as on Detectron2's command lines.

        Raises:
            FileNotFoundError, ValueError: the config or the weights cannot be used.
        """
        self.cfg = _prepare_config(config, weights, delta, device, opts)
        if not self.cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: the weights are random, and so are the boxes")
        self.model = load_model(self.cfg)
        self.model.eval()
        self.augmentations = T.AugmentationList(build_augmentations(self.cfg, is_train=False))

    # A str is an Iterable too, but here it is always the path of one image.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        *,
        classes: Sequence[str] | None = ...,
        caption: str | None = ...,
        phrases: Sequence[Phrase] | None = ...,
        channel_order: ChannelOrder | None = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageSource],
        *,
        classes: ClassNames | None = ...,
        caption: str | None = ...,
        phrases: Sequence[Phrase] | None = ...,
        channel_order: ChannelOrder | None = ...,
        batch_size: int = ...,
        on_error: Literal["raise", "skip"] = ...,
    ) -> list[Prediction | None]: ...

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        classes: ClassNames | None = None,
        caption: str | None = None,
        phrases: Sequence[Phrase] | None = None,
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Prediction | list[Prediction | None]:
        """Find what the prompt names.

        Args:
            images: one image or several: paths, PIL images, arrays (H, W[, C]) or tensors
                (C, H, W), uint8 or uint16.
            classes: names to look for; for several images also one list of names per image.
            caption: a text to look for instead; what is looked for are its ``phrases``.
            phrases: default the noun phrases of the caption, found by spaCy.
            channel_order: of colour arrays and tensors.
            batch_size: images that go through the model together. Padding to a common size can
                change scores in the last digits.
            on_error: what a file that is missing or no picture does among several: raise, or log
                it and give None in its place.

        Returns:
            One :class:`Prediction` for one image, a list of them for several.

        Raises:
            FileNotFoundError, ValueError: an image or the prompt cannot be used.
        """
        if batch_size < 1 or on_error not in ("raise", "skip"):
            raise ValueError(
                f"batch_size is {batch_size}, on_error {on_error!r}; "
                "give at least 1, and 'raise' or 'skip'"
            )
        if isinstance(images, IMAGE_SOURCES):
            (prompt,) = _prompt_per_image(1, classes, caption, phrases)
            image = load_image(images, channel_order)
            return self._predict_batch([self._make_input(image, prompt)])[0]

        sources = list(images)
        prompts = _prompt_per_image(len(sources), classes, caption, phrases)
        predictions: list[Prediction | None] = [None] * len(sources)
        loaded = _load_images(sources, channel_order, skip_bad_files=on_error == "skip")
        while batch := list(islice(loaded, batch_size)):
            inputs = [self._make_input(image, prompts[index]) for index, image in batch]
            for (index, _), found in zip(batch, self._predict_batch(inputs), strict=True):
                predictions[index] = found
        return predictions

    def _make_input(self, image: np.ndarray, prompt: dict[str, Any]) -> dict[str, Any]:
        """The model's input dict of an RGB image (H, W, 3)."""
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        aug_input = T.AugInput(image)
        self.augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {fields.IMAGE: tensor, "height": height, "width": width, **prompt}

    def _predict_batch(self, inputs: list[dict[str, Any]]) -> list[Prediction]:
        with torch.no_grad():
            outputs = self.model(inputs)
        predictions = []
        for input_per_image, output in zip(inputs, outputs, strict=True):
            instances = output[fields.INSTANCES].to("cpu")
            best_first = instances.scores.argsort(descending=True, stable=True)
            names = output.get(fields.PHRASES, input_per_image.get(fields.CLASSES))
            size = (input_per_image["height"], input_per_image["width"])
            predictions.append(Prediction(instances[best_first], list(names), size))
        return predictions


def _prepare_config(
    config: str | Path | CfgNode,
    weights: str | Path | None,
    delta: str | Path | None,
    device: str | torch.device | None,
    opts: Sequence[Any],
) -> CfgNode:
    """A frozen config of its own, with the caller's choices written into it."""
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        cfg.merge_from_list(list(opts))
    else:
        cfg = load_config(str(config), list(opts)).clone()
        cfg.defrost()
    if weights is not None:
        cfg.MODEL.WEIGHTS = str(weights)
    if delta is not None:
        cfg.MODEL.TUNING.DELTA = str(delta)
    if device is not None:
        cfg.MODEL.DEVICE = str(device)
    elif cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _load_images(
    sources: Sequence[ImageSource], channel_order: ChannelOrder | None, *, skip_bad_files: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, RGB image) of every source that can be read, one at a time."""
    for index, source in enumerate(sources):
        try:
            yield index, load_image(source, channel_order)
        except (FileNotFoundError, ValueError) as error:
            # Only files are skipped: a wrong array is the caller's mistake, not the data's.
            if not (skip_bad_files and isinstance(source, (str, Path))):
                raise
            logger.warning("image %d of %d skipped: %s", index + 1, len(sources), error)


def _prompt_per_image(
    num_images: int,
    classes: ClassNames | None,
    caption: str | None,
    phrases: Sequence[Phrase] | None,
) -> list[dict[str, Any]]:
    """The prompt's part of each image's input dict."""
    if caption is not None and classes is None:
        return [_caption_fields(caption, phrases)] * num_images
    if classes is None or caption is not None:
        raise ValueError(
            f"give classes or a caption, one of the two: classes={classes!r}, caption={caption!r}"
        )
    if phrases is not None:
        raise ValueError(f"phrases={phrases!r} belong to a caption, not to classes")
    if isinstance(classes, str):
        raise ValueError(f"classes is a list of names, not the text {classes!r}: split it first")
    is_one_list = all(isinstance(name, str) for name in classes)
    names_per_image = [classes] * num_images if is_one_list else list(classes)
    if len(names_per_image) != num_images:
        raise ValueError(f"{len(names_per_image)} lists of classes for {num_images} images")
    return [{fields.CLASSES: _check_names(names)} for names in names_per_image]


def _check_names(names: Any) -> list[str]:
    """What the model cannot see any more; it checks the names themselves."""
    if isinstance(names, str):
        raise ValueError(f"classes mixes names and lists of names: {names!r} is not in a list")
    if len(names) == 0:
        raise ValueError("the list of class names is empty; name at least one thing to look for")
    return list(names)


def _caption_fields(caption: str, phrases: Sequence[Phrase] | None) -> dict[str, Any]:
    if not re.search(r"\w", caption):
        raise ValueError(f"the caption {caption!r} has no word; write what to look for")
    if phrases is None:
        spans_per_phrase = noun_phrases(caption)
        if not spans_per_phrase:
            raise ValueError(
                f"no noun phrase was found in the caption {caption!r}; "
                "name them yourself (phrases=[...]) or give class names"
            )
    else:
        spans_per_phrase = [_phrase_spans(caption, phrase) for phrase in phrases]
        if not spans_per_phrase:
            raise ValueError(f"phrases is empty; name phrases of {caption!r}, or leave it out")
    return {fields.CAPTION: caption, fields.PHRASES: spans_per_phrase}


def _phrase_spans(caption: str, phrase: Phrase) -> list[Span]:
    if not isinstance(phrase, str):
        return [(int(start), int(end)) for start, end in phrase]
    match = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE)
    if not phrase.strip() or match is None:
        raise ValueError(f"the phrase {phrase!r} is not in the caption {caption!r}; copy its words")
    return [match.span()]
