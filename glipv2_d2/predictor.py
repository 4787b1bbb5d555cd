"""Run a model on images: detection, grounding, question answering and captioning.

    predictor = Predictor("glip-t")
    prediction = predictor.predict("photo.jpg", classes=["cat", "coffee cup"])
    print(prediction.labels, prediction.instances.scores)

With heads for answers and captions (MODEL.ANSWER, MODEL.CAPTION):

    print(predictor.answer("photo.jpg", "what is on the table?", ground=True))
    print(predictor.caption("photo.jpg"))
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY

from glipv2_d2.config import complete_config, named_config_file
from glipv2_d2.data.resize import build_augmentations
from glipv2_d2.engine.finetune.tuning import load_model
from glipv2_d2.engine.precision import inference_precision, round_weights
from glipv2_d2.engine.setup import load_config, load_foreign_config
from glipv2_d2.evaluation.thresholds import ScoreThresholds, display_threshold
from glipv2_d2.hub import pretrained_files, push_folder, save_model
from glipv2_d2.images import (
    IMAGE_SOURCES,
    ChannelOrder,
    ChannelOrderError,
    ImageSource,
    in_channel_order,
    load_image,
)
from glipv2_d2.item_errors import predict_each
from glipv2_d2.model_folder import is_stored_model
from glipv2_d2.model_zoo import is_model_name, model_files
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.class_scores import best_class_scores
from glipv2_d2.prediction import Answer, Caption, Prediction, TaskResults, Thresholds
from glipv2_d2.predictor_inputs import (
    ClassNames,
    Phrase,
    grounding_fields,
    prompt_fields,
    question_fields,
)
from glipv2_d2.projects import load_projects
from glipv2_d2.structures import GenerationConfig, fields
from glipv2_d2.tiling import detect_in_tiles

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Images = ImageSource | Iterable[ImageSource]
OnError = Literal["raise", "skip"]
MinScore = float | Literal["model"] | None
"""A minimum score, "model": :attr:`Predictor.threshold`, or None: all boxes are kept."""

PROBE = np.full((64, 64, 3), 128, dtype=np.uint8)
"""An image that every model can predict, see :func:`~glipv2_d2.item_errors.predict_each`."""


class _OneOrMany(Protocol[P, R]):
    """A method that returns one result for one image, and a list of results for several."""

    # A str is an Iterable too, but here it is always the path of one image.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, images: ImageSource, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def __call__(
        self, images: Iterable[ImageSource], *args: P.args, **kwargs: P.kwargs
    ) -> list[R | None]: ...


class _OneOrManyMethod(Protocol[P, R]):
    def __get__(self, instance: Any, owner: Any) -> _OneOrMany[P, R]: ...


def _one_or_many(
    result: type[R],  # noqa: ARG001 - sets R
) -> Callable[[Callable[Concatenate[Any, Images, P], R | list[R | None]]], _OneOrManyMethod[P, R]]:
    """Declare the two return types of a method; no effect at run time."""

    def unchanged(method: Any) -> Any:
        return method

    return unchanged


class Predictor:
    """A model with its weights, for inference on images."""

    def __init__(
        self,
        config: str | Path | CfgNode,
        weights: str | Path | None = None,
        *,
        delta: str | Path | None = None,
        device: str | torch.device | None = None,
        opts: Sequence[Any] = (),
        revision: str | None = None,
    ) -> None:
        """Build the model and load its weights.

        If ``TEST.PRECISION`` is not fp32, the weights of ``self.model`` are rounded to it, see
        :func:`~glipv2_d2.engine.precision.round_weights`; do not train or save this model.

        Args:
            config: the name of a model ("glipv2-mini", "glip-t", "glip-t-a", "glip-l"; see
                :func:`~glipv2_d2.config.get_config`), a YAML file or a config; the folder of
                ``glipv2 finetune`` or :meth:`save_pretrained`, or the file of ``--export
                one_file``.
            weights: a checkpoint of this project or of GLIP; default: those of the named model,
                GLIP's from the Hugging Face hub, or ``MODEL.WEIGHTS`` of the config.
            delta: fine-tuned changes to these weights; default ``MODEL.TUNING.DELTA``.
            device: default ``MODEL.DEVICE``, or the CPU if that is CUDA and not available.
            opts: alternating config keys and values, as on Detectron2's command lines.
            revision: of the hub's repository, if a named model has its weights there.

        Raises:
            FileNotFoundError: a file does not exist, or is neither cached nor can be downloaded.
            ValueError: the name is unknown, or the config or the weights are invalid.
        """
        config, weights = _resolve(config, weights, opts, revision)
        self.cfg = _prepare_config(config, weights, delta, device, opts)
        if not self.cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: the weights are random, and so are the results")
        self.model: Any = load_model(self.cfg)
        self.model.eval()
        round_weights(self.model, self.cfg)
        self.augmentations = T.AugmentationList(build_augmentations(self.cfg, is_train=False))

    @property
    def threshold(self) -> float:
        """The model's minimum score of a box, ``TEST.DISPLAY_SCORE_THRESH`` of its config."""
        return display_threshold(self.cfg)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        opts: Sequence[Any] = (),
    ) -> Predictor:
        """A model of :meth:`save_pretrained`: a folder, or a repository "user/model" of the hub.

        No code is run that comes with the model.

        Args:
            revision: commit, branch or tag of the repository.
            device, opts: see the constructor.

        Raises:
            FileNotFoundError: the files are missing, or neither cached nor can be downloaded.
            ValueError: a file is invalid.
        """
        files = pretrained_files(source, revision)
        cfg = load_foreign_config(files.config, opts)
        return cls(cfg, files.weights, device=device)

    @property
    def class_names(self) -> list[str]:
        """The class names of a fine-tuned model; empty for others."""
        return list(self.cfg.MODEL.TUNING.CLASS_NAMES)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.yaml, model.safetensors and a model card, see :mod:`glipv2_d2.hub`."""
        save_model(self.model, self.cfg, folder)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "Add a model of glipv2_d2",
        token: str | None = None,
    ) -> str:
        """Upload the files of :meth:`save_pretrained` to the Hugging Face hub.

        Args:
            repository: "user/model"; made if it does not exist.
            private: whether a new repository is private.
            revision: an existing branch; default: the main one.
            message: of the commit.
            token: default: that of ``hf auth login``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: the model cannot be saved, or the hub refuses it.
        """
        with tempfile.TemporaryDirectory() as folder:
            save_model(self.model, self.cfg, folder, repository)
            return push_folder(
                folder, repository, private=private, revision=revision, message=message, token=token
            )

    @_one_or_many(Prediction)
    def predict(
        self,
        images: Images,
        *,
        classes: ClassNames | None = None,
        negatives: ClassNames | None = None,
        caption: str | None = None,
        phrases: Sequence[Phrase] | None = None,
        threshold: MinScore = "model",
        thresholds: Thresholds | None = None,
        one_name_per_box: bool = False,
        tiles: int | None = None,
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Prediction | list[Prediction | None]:
        """Detect the objects of a prompt, which is either ``classes`` or a ``caption``.

        Args:
            images: one image or several: paths, PIL images, arrays (H, W[, C]) or tensors
                (C, H, W), uint8 or uint16. Files and PIL images are turned upright by their EXIF
                orientation.
            classes: class names; for several images also one list per image. Nothing is detected
                for a name without a word in the tokenizer's vocabulary, and a warning names it.
                Default: :attr:`class_names`, if there are any.
            negatives: class names that compete with the classes and are not returned: a box is
                dropped if one of them has a higher score ("wolf" against false "dog"). For several
                images also one list per image.
            caption: grounds the ``phrases`` of this caption.
            phrases: of the caption, each a string or a list of character spans; a string that is
                passed twice is found at two places. Default: the parts between " . " of a caption
                such as "cat . dog .", else its noun phrases, found by spaCy.
            threshold: minimum score, for all classes; None: all boxes are returned. Default: that
                of the model, :attr:`threshold`, for the classes without one in ``thresholds``.
            thresholds: score threshold per class, a mapping or the file of a calibration.
            one_name_per_box: of boxes of different names that overlap with an IoU above
                ``MODEL.GROUNDING.NMS_THRESH``, return only the one with the highest score. By
                default an object that matches several names has a box for each.
            tiles: also find small objects in large images: detect in overlapping tiles of this
                width and height in pixels, and merge (``pip install 'glipv2_d2[supervision]'``).
            channel_order: required for colour arrays and tensors.
            batch_size: images, or tiles, per forward pass. Padding to a common size can change
                scores in the last digits.
            on_error: "skip": among several images, one that cannot be read or predicted is logged
                and its result is None.

        Returns:
            One :class:`Prediction` for one image, a list of them for several. Boxes and sizes are
            in pixels of the upright image.

        Raises:
            FileNotFoundError, ValueError: an image or the prompt is invalid.
        """
        min_scores = self._min_scores(threshold, thresholds)
        if classes is None and caption is None and self.class_names:
            classes = self.class_names

        def select(prediction: Prediction) -> Prediction:
            # Thresholds first: a name below its threshold suppresses no other.
            prediction = prediction.above(min_scores)
            if one_name_per_box:
                return prediction.one_name_per_box(self.cfg.MODEL.GROUNDING.NMS_THRESH)
            return prediction

        def make_fields(num_images: int) -> list[dict[str, Any]]:
            return prompt_fields(num_images, classes, negatives, caption, phrases)

        if tiles is None:
            return self._run(
                images,
                make_fields,
                lambda x, output: select(Prediction.from_output(x, output)),
                channel_order,
                batch_size,
                on_error,
            )
        _check_batch(batch_size, on_error)
        sources = [images] if isinstance(images, IMAGE_SOURCES) else list(images)
        text_fields = make_fields(len(sources))
        skip = on_error == "skip" and not isinstance(images, IMAGE_SOURCES)
        results: list[Prediction | None] = [None] * len(sources)
        for index, image in _load_images(sources, channel_order, skip=skip):
            results[index] = select(
                self._predict_tiles(image, text_fields[index], tiles, batch_size)
            )
        return results[0] if isinstance(images, IMAGE_SOURCES) else results  # type: ignore[return-value]

    @_one_or_many(Answer)
    def answer(
        self,
        images: Images,
        questions: str | Sequence[str],
        *,
        ground: bool = False,
        choices: Sequence[str] | None = None,
        threshold: MinScore = "model",
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Answer | list[Answer | None]:
        """Answer questions about images.

        Args:
            images, channel_order, batch_size, on_error: see :meth:`predict`.
            questions: one for all images, or one per image. An image that is passed several times
                in a row, within one batch, is encoded once: ``answer([image] * 2, ["is it red?",
                "is it blue?"], batch_size=2)``.
            ground: also detect the answer and the noun phrases of the question.
            choices: candidate answers; default: the answer vocabulary of the model. With
                ``MODEL.ANSWER.CLASSIFIER`` "text" they may be any strings, and the default for "is
                it day or night?" is the two answers that it names.
            threshold: minimum score of the boxes; default: :attr:`threshold`, None: all boxes.

        Returns:
            One :class:`~glipv2_d2.prediction.Answer` for one image, a list of them for several.

        Raises:
            FileNotFoundError, ValueError: an image, a question or the choices are invalid, or the
                model has no answer head.
        """
        self._require_glipv2("answer")
        min_scores = self._min_scores(threshold)
        return self._run(
            images,
            lambda num_images: question_fields(num_images, questions, choices, ground=ground),
            lambda x, output: Answer.from_output(x, output).above(min_scores),
            channel_order,
            batch_size,
            on_error,
        )

    @_one_or_many(Caption)
    def caption(
        self,
        images: Images,
        *,
        ground: bool = False,
        prefix: str | None = None,
        beam_size: int | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        length_penalty: float | None = None,
        threshold: MinScore = "model",
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Caption | list[Caption | None]:
        """Generate captions of images.

        Args:
            images, channel_order, batch_size, on_error: see :meth:`predict`.
            ground: also detect the noun phrases of the caption.
            prefix: beginning of the caption.
            beam_size, min_length, max_length, length_penalty: see
                :class:`~glipv2_d2.structures.GenerationConfig`; default: the
                values of ``MODEL.CAPTION``.
            threshold: minimum score of the boxes; default: :attr:`threshold`, None: all boxes.

        Returns:
            One :class:`~glipv2_d2.prediction.Caption` for one image, a list of them for several.

        Raises:
            FileNotFoundError, ValueError: an image or the generation arguments are invalid, or the
                model has no caption head.
        """
        self._require_glipv2("caption")
        min_scores = self._min_scores(threshold)
        x = {
            fields.DESCRIBE: self._generation_config(
                prefix=prefix,
                beam_size=beam_size,
                min_length=min_length,
                max_length=max_length,
                length_penalty=length_penalty,
            ),
            fields.GROUND: ground,
        }
        return self._run(
            images,
            lambda num_images: [x] * num_images,
            lambda x, output: Caption.from_output(x, output).above(min_scores),
            channel_order,
            batch_size,
            on_error,
        )

    @_one_or_many(Prediction)
    def ground(
        self,
        images: Images,
        captions: str | Sequence[str],
        *,
        threshold: MinScore = "model",
        channel_order: ChannelOrder | None = None,
        batch_size: int = 1,
        on_error: OnError = "raise",
    ) -> Prediction | list[Prediction | None]:
        """Detect the noun phrases of captions, as :meth:`predict` with one caption per image.

        Args:
            images, threshold, channel_order, batch_size, on_error: see :meth:`predict`.
            captions: one for all images, or one per image.
        """
        min_scores = self._min_scores(threshold)
        return self._run(
            images,
            lambda num_images: grounding_fields(num_images, captions),
            lambda x, output: Prediction.from_output(x, output).above(min_scores),
            channel_order,
            batch_size,
            on_error,
        )

    def run_tasks(
        self,
        image: ImageSource,
        *,
        classes: Sequence[str],
        questions: Sequence[str] = (),
        describe: bool = False,
        ground_answers: bool = False,
        ground_caption: bool = False,
        threshold: MinScore = "model",
        channel_order: ChannelOrder | None = None,
    ) -> TaskResults:
        """Detect classes in an image, answer questions and describe it, in one forward pass.

        The image is encoded once. The results are those of :meth:`predict`, :meth:`answer` and
        :meth:`caption`.

        Args:
            image, channel_order: see :meth:`predict`.
            classes: class names to detect.
            questions: about the image.
            describe: generate a caption.
            ground_answers, ground_caption: also detect their phrases.
            threshold: minimum score of all boxes; default: :attr:`threshold`, None: all boxes.

        Raises:
            FileNotFoundError, ValueError: the image or a prompt is invalid, or the model lacks the
                head.
        """
        min_scores = self._min_scores(threshold)
        requests = prompt_fields(1, classes, None, None, None)
        if questions:
            self._require_glipv2("answer")
            requests += question_fields(
                len(questions), list(questions), None, ground=ground_answers
            )
        if describe:
            self._require_glipv2("caption")
            requests.append({fields.DESCRIBE: True, fields.GROUND: ground_caption})
        x = self._make_input(load_image(image, channel_order), {})
        inputs = [x | request for request in requests]
        detections, *texts = zip(inputs, self._forward(inputs), strict=True)
        caption = Caption.from_output(*texts.pop()).above(min_scores) if describe else None
        answers = [Answer.from_output(*pair).above(min_scores) for pair in texts]
        return TaskResults(Prediction.from_output(*detections).above(min_scores), answers, caption)

    def class_scores(
        self,
        images: Iterable[ImageSource],
        *,
        classes: Sequence[str],
        channel_order: ChannelOrder | None = None,
    ) -> np.ndarray:
        """Compute the best score of each class in each image, without thresholds.

        Args:
            images: one batch; as for :meth:`predict`.
            classes: class names for all images.
            channel_order: see :meth:`predict`.

        Returns:
            (images, classes) float32, 0..1, the score of the best box of each class.

        Raises:
            FileNotFoundError, ValueError: an image or the class names are invalid, or the model is
                not a :class:`~glipv2_d2.modeling.GLIPv2`.
        """
        self._require_glipv2("class_scores")
        loaded = [load_image(image, channel_order) for image in images]
        prompts = prompt_fields(len(loaded), classes, None, None, None)
        if not loaded:
            return np.zeros((0, len(classes)), dtype=np.float32)
        inputs = [
            self._make_input(image, prompt) for image, prompt in zip(loaded, prompts, strict=True)
        ]
        with inference_precision(self.cfg):
            return np.stack([scores.numpy() for scores in best_class_scores(self.model, inputs)])

    def _predict_tiles(
        self, image: np.ndarray, text_fields: dict[str, Any], tile_size: int, batch_size: int
    ) -> Prediction:
        """Predict an RGB image (H, W, 3) in tiles."""
        last: list[Prediction] = []

        def detect(tiles: Sequence[np.ndarray]) -> list[Any]:
            inputs = [self._make_input(tile, text_fields) for tile in tiles]
            outputs = self._forward(inputs)
            last[:] = [
                Prediction.from_output(x, output) for x, output in zip(inputs, outputs, strict=True)
            ]
            return [prediction.to_supervision() for prediction in last]

        detections = detect_in_tiles(
            detect,
            image,
            tile_size,
            overlap_threshold=self.cfg.MODEL.GROUNDING.NMS_THRESH,
            batch_size=batch_size,
        )
        height, width = image.shape[:2]
        merged = Prediction.from_supervision(detections, last[0].names, (height, width))
        return replace(merged, text=last[0].text, spans=last[0].spans)

    def _make_input(self, image: np.ndarray, text_fields: dict[str, Any]) -> dict[str, Any]:
        """The model's input dict of an RGB image (H, W, 3)."""
        height, width = image.shape[:2]
        aug_input = T.AugInput(in_channel_order(image, self.cfg.INPUT.FORMAT))
        self.augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {fields.IMAGE: tensor, fields.HEIGHT: height, fields.WIDTH: width, **text_fields}

    def _min_scores(
        self, threshold: MinScore, thresholds: Thresholds | None = None
    ) -> ScoreThresholds:
        """The minimum score per name, see :meth:`predict`."""
        _check_threshold(threshold)
        if threshold == "model" and (thresholds is None or isinstance(thresholds, Mapping)):
            return ScoreThresholds(dict(thresholds or {}), self.threshold)
        scores = ScoreThresholds.from_source({} if thresholds is None else thresholds)
        if threshold is None or isinstance(threshold, str):
            return scores
        per_class = {name: max(score, threshold) for name, score in scores.per_class.items()}
        return ScoreThresholds(per_class, max(scores.default, threshold))

    def _require_glipv2(self, method: str) -> None:
        if not isinstance(self.model, GLIPv2):
            raise ValueError(
                f"{method} requires MODEL.META_ARCHITECTURE GLIPv2, not {type(self.model).__name__}"
            )

    def _generation_config(self, **overrides: Any) -> GenerationConfig | bool:
        """The settings of the caption head, changed by the arguments that are not None.

        True without a caption head: the model then raises an error with the config key.
        """
        tasks = self.model.text_tasks
        if tasks is None or tasks.caption is None:
            return True
        changes = {key: value for key, value in overrides.items() if value is not None}
        return replace(tasks.caption.generation, **changes)

    def _run(
        self,
        images: Images,
        make_fields: Callable[[int], Sequence[dict[str, Any]]],
        make_result: Callable[[dict[str, Any], dict[str, Any]], R],
        channel_order: ChannelOrder | None,
        batch_size: int,
        on_error: OnError,
    ) -> R | list[R | None]:
        """Run the model on one image, or on several in batches.

        Args:
            make_fields: number of images -> the text fields of each input dict.
            make_result: (input dict, output dict) -> result.

        Returns:
            The result of one image, or a list of results with None for skipped images.
        """
        _check_batch(batch_size, on_error)
        is_one = isinstance(images, IMAGE_SOURCES)
        sources = [images] if isinstance(images, IMAGE_SOURCES) else list(images)
        text_fields = make_fields(len(sources))

        def predict(batch: dict[int, np.ndarray]) -> list[R]:
            tensors: dict[int, dict[str, Any]] = {}
            inputs = []
            for index, image in batch.items():
                # Inputs with one tensor are encoded once.
                if id(image) not in tensors:
                    tensors[id(image)] = self._make_input(image, {})
                inputs.append(tensors[id(image)] | text_fields[index])
            outputs = self._forward(inputs)
            return [make_result(x, output) for x, output in zip(inputs, outputs, strict=True)]

        skip = on_error == "skip" and not is_one
        results: list[R | None] = [None] * len(sources)
        loaded = _load_images(sources, channel_order, skip=skip)
        while batch := dict(islice(loaded, batch_size)):
            predicted, errors = predict_each(predict, batch, lambda _: PROBE)
            for index, error in errors.items():
                name = _name(sources, index)
                reason = f"{name} cannot be predicted ({type(error).__name__}: {error})"
                if not skip:
                    raise ValueError(reason) from error
                logger.warning("image %d of %d skipped: %s", index + 1, len(sources), reason)
            for index, result in predicted.items():
                results[index] = result
        return cast(R, results[0]) if is_one else results

    def _forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with torch.no_grad(), inference_precision(self.cfg):
            return self.model(inputs)


def _check_batch(batch_size: int, on_error: str) -> None:
    if batch_size < 1 or on_error not in ("raise", "skip"):
        raise ValueError(
            f"batch_size is {batch_size} and on_error {on_error!r}; "
            "batch_size must be at least 1, on_error 'raise' or 'skip'"
        )


def _check_threshold(threshold: MinScore) -> None:
    if threshold is None or threshold == "model":
        return
    if isinstance(threshold, str) or not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold is {threshold!r}; scores are from 0 to 1, None keeps all boxes and "
            "'model' those above the model's own threshold"
        )


def _resolve(
    config: str | Path | CfgNode,
    weights: str | Path | None,
    opts: Sequence[Any],
    revision: str | None,
) -> tuple[str | Path | CfgNode, str | Path | None]:
    """Config and weights, of which ``config`` may be the name, folder or file of a model."""
    if isinstance(config, str | Path) and is_stored_model(config):
        files = pretrained_files(config, revision)
        return load_foreign_config(files.config), weights or files.weights
    if not (isinstance(config, str) and is_model_name(config)):
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for named models, not for {config!r}")
        return config, weights
    if weights is not None or "MODEL.WEIGHTS" in opts:
        return named_config_file(config), weights
    files = model_files(config, revision)
    if files.weights is None:
        raise ValueError(f"no weights of {config!r} were published; pass weights=...")
    return files.config, files.weights


def _prepare_config(
    config: str | Path | CfgNode,
    weights: str | Path | None,
    delta: str | Path | None,
    device: str | torch.device | None,
    opts: Sequence[Any],
) -> CfgNode:
    """A frozen copy of the config with the given overrides."""
    if isinstance(config, CfgNode):
        load_projects()
        cfg = complete_config(config).clone()
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
    _check_takes_class_names(cfg.MODEL.META_ARCHITECTURE)
    display_threshold(cfg)
    cfg.freeze()
    return cfg


def _check_takes_class_names(meta_architecture: str) -> None:
    """Raise a ValueError for Detectron2's own models, which ignore the class names of an input."""
    if META_ARCH_REGISTRY.get(meta_architecture).__module__.startswith("detectron2."):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {meta_architecture}, which detects a closed list of "
            "classes only: use GLIPv2, or OpenVocabularyRCNN or OpenVocabularyRetinaNet, which can "
            "load its weights (configs/closed_set)"
        )


def _load_images(
    sources: Sequence[ImageSource], channel_order: ChannelOrder | None, *, skip: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, RGB image) of each readable source; of a repeated one, the same array."""
    image: np.ndarray | None = None
    for index, source in enumerate(sources):
        try:
            if image is None or source is not sources[index - 1]:
                image = None
                image = load_image(source, channel_order)
        except (FileNotFoundError, ValueError) as error:
            # The order of the channels is an error of the caller, for all images.
            if not skip or isinstance(error, ChannelOrderError):
                raise
            logger.warning("image %d of %d skipped: %s", index + 1, len(sources), error)
        else:
            yield index, image


def _name(sources: Sequence[ImageSource], index: int) -> str:
    source = sources[index]
    is_file = isinstance(source, (str, Path))
    return f"image {str(source)!r}" if is_file else f"image {index + 1} of {len(sources)}"
