"""Images and a prompt in, boxes and masks out; or answers and descriptions.

predictor = Predictor("configs/mini/glipv2_mini.yaml", "glipv2_d2/assets/glipv2_mini.pth")
prediction = predictor.predict("photo.jpg", classes=["cat", "coffee cup"])
print(prediction.labels, prediction.instances.scores)

A model with heads for them (MODEL.ANSWER, MODEL.CAPTION) also has

print(predictor.answer("photo.jpg", "what is on the table?", ground=True))
print(predictor.caption("photo.jpg"))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from glipv2_d2.asking import (
    ClassNames,
    Phrase,
    caption_per_image,
    prompt_per_image,
    question_per_image,
)
from glipv2_d2.data.resize import build_augmentations
from glipv2_d2.engine.precision import inference_precision, round_weights
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.tuning import load_model
from glipv2_d2.evaluation.thresholds import NameThresholds
from glipv2_d2.images import IMAGE_SOURCES, ChannelOrder, ImageSource, load_image
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.name_scores import best_scores
from glipv2_d2.prediction import Answer, Caption, Prediction, Thresholds
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

R = TypeVar("R")
OnError = Literal["raise", "skip"]


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

        Where ``TEST.PRECISION`` is not fp32, the weights of ``model`` are rounded to it, see
        :func:`~glipv2_d2.engine.precision.round_weights`: train and save another.

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
        self.model: Any = load_model(self.cfg)
        self.model.eval()
        round_weights(self.model, self.cfg)
        self.augmentations = T.AugmentationList(build_augmentations(self.cfg, is_train=False))

    # A str is an Iterable too, but here it is always the path of one image.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        *,
        classes: Sequence[str] | None = ...,
        negatives: Sequence[str] | None = ...,
        caption: str | None = ...,
        phrases: Sequence[Phrase] | None = ...,
        thresholds: Thresholds | None = ...,
        channel_order: ChannelOrder | None = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageSource],
        *,
        classes: ClassNames | None = ...,
        negatives: ClassNames | None = ...,
        caption: str | None = ...,
        phrases: Sequence[Phrase] | None = ...,
        thresholds: Thresholds | None = ...,
        channel_order: ChannelOrder | None = ...,
        batch_size: int = ...,
        on_error: OnError = ...,
    ) -> list[Prediction | None]: ...

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        classes: ClassNames | None = None,
        negatives: ClassNames | None = None,
        caption: str | None = None,
        phrases: Sequence[Phrase] | None = None,
        thresholds: Thresholds | None = None,
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Prediction | list[Prediction | None]:
        """Find what the prompt names.

        Args:
            images: one image or several: paths, PIL images, arrays (H, W[, C]) or tensors
                (C, H, W), uint8 or uint16.
            classes: names to look for; for several images also one list of names per image.
            negatives: names that compete with the classes and are not returned: a box is dropped
                where one of them scores higher ("wolf", so that it is not found as "dog"). For
                several images also one list per image.
            caption: a text to look for instead; what is looked for are its ``phrases``.
            phrases: default the noun phrases of the caption, found by spaCy.
            thresholds: the least score by name, a mapping or the file of a calibration. A name that
                a mapping does not have keeps all its boxes.
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
        least = NameThresholds.of({} if thresholds is None else thresholds)

        def read(x: dict[str, Any], output: dict[str, Any]) -> Prediction:
            return Prediction.of(x, output).above(least)

        def ask(num_images: int) -> list[dict[str, Any]]:
            return prompt_per_image(num_images, classes, negatives, caption, phrases)

        return self._ask(images, ask, read, channel_order, batch_size, on_error)

    @overload
    def answer(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        questions: str,
        *,
        ground: bool = ...,
        choices: Sequence[str] | None = ...,
        channel_order: ChannelOrder | None = ...,
    ) -> Answer: ...

    @overload
    def answer(
        self,
        images: Iterable[ImageSource],
        questions: str | Sequence[str],
        *,
        ground: bool = ...,
        choices: Sequence[str] | None = ...,
        channel_order: ChannelOrder | None = ...,
        batch_size: int = ...,
        on_error: OnError = ...,
    ) -> list[Answer | None]: ...

    def answer(
        self,
        images: ImageSource | Iterable[ImageSource],
        questions: str | Sequence[str],
        *,
        ground: bool = False,
        choices: Sequence[str] | None = None,
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Answer | list[Answer | None]:
        """Answer questions about images.

        Args:
            images, channel_order, batch_size, on_error: as of :meth:`predict`.
            questions: one for all images, or one per image.
            ground: also find the answer and the noun phrases of the question.
            choices: the answers to choose from; default: the model's. A model of
                ``MODEL.ANSWER.SCORE`` "words" takes any.

        Returns:
            One :class:`~glipv2_d2.prediction.Answer` for one image, a list of them for several.

        Raises:
            FileNotFoundError, ValueError: an image, a question or the choices cannot be used, or
                the model has no head for answers.
        """
        self._check_is_glipv2("answer")

        def ask(num_images: int) -> list[dict[str, Any]]:
            return question_per_image(num_images, questions, choices, ground=ground)

        return self._ask(images, ask, Answer.of, channel_order, batch_size, on_error)

    @overload
    def caption(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        *,
        ground: bool = ...,
        prefix: str | None = ...,
        beam_size: int | None = ...,
        min_length: int | None = ...,
        max_length: int | None = ...,
        length_penalty: float | None = ...,
        channel_order: ChannelOrder | None = ...,
    ) -> Caption: ...

    @overload
    def caption(
        self,
        images: Iterable[ImageSource],
        *,
        ground: bool = ...,
        prefix: str | None = ...,
        beam_size: int | None = ...,
        min_length: int | None = ...,
        max_length: int | None = ...,
        length_penalty: float | None = ...,
        channel_order: ChannelOrder | None = ...,
        batch_size: int = ...,
        on_error: OnError = ...,
    ) -> list[Caption | None]: ...

    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        ground: bool = False,
        prefix: str | None = None,
        beam_size: int | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        length_penalty: float | None = None,
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Caption | list[Caption | None]:
        """Describe images.

        Args:
            images, channel_order, batch_size, on_error: as of :meth:`predict`.
            ground: also find the noun phrases of the caption.
            prefix: what the caption begins with.
            beam_size, min_length, max_length, length_penalty: see
                :class:`~glipv2_d2.modeling.generation.beam_search.GenerationConfig`; by default
                those of ``MODEL.CAPTION``.

        Returns:
            One :class:`~glipv2_d2.prediction.Caption` for one image, a list of them for several.

        Raises:
            FileNotFoundError, ValueError: an image cannot be used, such captions cannot be written,
                or the model has no head for captions.
        """
        self._check_is_glipv2("caption")
        given = {
            "prefix": prefix,
            "beam_size": beam_size,
            "min_length": min_length,
            "max_length": max_length,
            "length_penalty": length_penalty,
        }
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        head = self.model.caption
        # Without a head the model says what to do.
        describe = True if head is None else replace(head.decoding, **changes)

        def ask(num_images: int) -> list[dict[str, Any]]:
            return [{fields.DESCRIBE: describe, fields.GROUND: ground}] * num_images

        return self._ask(images, ask, Caption.of, channel_order, batch_size, on_error)

    @overload
    def ground(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        captions: str,
        *,
        channel_order: ChannelOrder | None = ...,
    ) -> Prediction: ...

    @overload
    def ground(
        self,
        images: Iterable[ImageSource],
        captions: str | Sequence[str],
        *,
        channel_order: ChannelOrder | None = ...,
        batch_size: int = ...,
        on_error: OnError = ...,
    ) -> list[Prediction | None]: ...

    def ground(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: str | Sequence[str],
        *,
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Prediction | list[Prediction | None]:
        """Find the noun phrases of captions in their images.

        As :meth:`predict` with a caption, but each image may have its own.

        Args:
            images, channel_order, batch_size, on_error: as of :meth:`predict`.
            captions: one for all images, or one per image.
        """

        def ask(num_images: int) -> list[dict[str, Any]]:
            return caption_per_image(num_images, captions)

        return self._ask(images, ask, Prediction.of, channel_order, batch_size, on_error)

    def name_scores(
        self,
        images: Iterable[ImageSource],
        *,
        classes: Sequence[str],
        channel_order: ChannelOrder | None = None,
    ) -> np.ndarray:
        """How sure the model is of each name somewhere in each image, detected or not.

        Args:
            images, channel_order: as for :meth:`predict`; they go through the model together.
            classes: one list of names for all images.

        Returns:
            (images, names) float32, 0..1, the score of the best box of each name.

        Raises:
            FileNotFoundError, ValueError: an image or the names cannot be used, or the model is
                none that scores every name everywhere.
        """
        self._check_is_glipv2("name_scores")
        loaded = [load_image(image, channel_order) for image in images]
        prompts = prompt_per_image(len(loaded), classes, None, None, None)
        if not loaded:
            return np.zeros((0, len(classes)), dtype=np.float32)
        inputs = [
            self._make_input(image, prompt) for image, prompt in zip(loaded, prompts, strict=True)
        ]
        with inference_precision(self.cfg):
            return np.stack([scores.numpy() for scores in best_scores(self.model, inputs)])

    def _make_input(self, image: np.ndarray, prompt: dict[str, Any]) -> dict[str, Any]:
        """The model's input dict of an RGB image (H, W, 3)."""
        height, width = image.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        aug_input = T.AugInput(image)
        self.augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {fields.IMAGE: tensor, fields.HEIGHT: height, fields.WIDTH: width, **prompt}

    def _check_is_glipv2(self, what: str) -> None:
        if not isinstance(self.model, GLIPv2):
            raise ValueError(
                f"{what} needs MODEL.META_ARCHITECTURE GLIPv2, not {type(self.model).__name__}"
            )

    def _ask(
        self,
        images: ImageSource | Iterable[ImageSource],
        ask: Callable[[int], Sequence[dict[str, Any]]],
        read: Callable[[dict[str, Any], dict[str, Any]], R],
        channel_order: ChannelOrder | None,
        batch_size: int,
        on_error: OnError,
    ) -> R | list[R | None]:
        """What is read from the input and output of one image; of several, None for skipped ones.

        Args:
            ask: a number of images -> for each of them the fields that ask for something.
        """
        if isinstance(images, IMAGE_SOURCES):
            x = self._make_input(load_image(images, channel_order), ask(1)[0])
            return read(x, self._run([x])[0])
        if batch_size < 1 or on_error not in ("raise", "skip"):
            raise ValueError(
                f"batch_size is {batch_size}, on_error {on_error!r}; "
                "give at least 1, and 'raise' or 'skip'"
            )
        sources = list(images)
        asked = ask(len(sources))
        results: list[R | None] = [None] * len(sources)
        loaded = _load_images(sources, channel_order, skip_bad_files=on_error == "skip")
        while batch := list(islice(loaded, batch_size)):
            inputs = [self._make_input(image, asked[index]) for index, image in batch]
            for (index, _), x, output in zip(batch, inputs, self._run(inputs), strict=True):
                results[index] = read(x, output)
        return results

    def _run(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with torch.no_grad(), inference_precision(self.cfg):
            return self.model(inputs)


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
