"""From a data set's record to the model's input dict (see :mod:`glipv2_d2.structures.fields`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.file_io import PathManager
from PIL import ImageOps

from glipv2_d2.data.caption_text import CaptionPacker, is_mirrored, swap_sides
from glipv2_d2.data.prompt_sampling import sample_classes
from glipv2_d2.data.resize import build_augmentations
from glipv2_d2.data.sanitize import caption_labels, fit_caption
from glipv2_d2.data.text_tasks import (
    EVALUATION_KEYS,
    asks_words_only,
    check_text_task,
    is_text_task,
    mirrored,
)
from glipv2_d2.images import open_image
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.prompts import (
    Decoration,
    check_names,
    check_separator,
    class_prompt,
    clean_name,
)
from glipv2_d2.text.tokenizer import Tokenizer

# Names, and what a prompt says for them where that is something else.
_Names = tuple[tuple[str, ...], tuple[Decoration, ...]]

# Lists of names that are kept measured: a data set has one.
MAX_MEASURED_LISTS = 64


class ClassPrompter:
    """Samples the prompts of training images from lists of class names."""

    @configurable
    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        separator: str,
        max_negatives: int,
        full_negatives_prob: float,
        shuffle: bool,
    ) -> None:
        """
        Args:
            separator: between the names of a prompt.
            max_negatives, full_negatives_prob, shuffle: see :func:`sample_classes`.

        Raises:
            ValueError: two names would run together with this separator.
        """
        check_separator(separator, tokenizer)
        self.tokenizer = tokenizer
        self.separator = separator
        self.max_negatives = max_negatives
        self.full_negatives_prob = full_negatives_prob
        self.shuffle = shuffle
        # Every image of a data set brings the same list of names: measure it once.
        self._measured: dict[_Names, tuple[list[str], list[int]]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, tokenizer: Tokenizer) -> dict[str, Any]:
        return {
            "tokenizer": tokenizer,
            "separator": cfg.MODEL.PROMPT.SEPARATOR,
            "max_negatives": cfg.DATALOADER.PROMPT.MAX_NEGATIVES,
            "full_negatives_prob": cfg.DATALOADER.PROMPT.FULL_NEGATIVES_PROB,
            "shuffle": cfg.DATALOADER.PROMPT.SHUFFLE,
        }

    def __call__(
        self,
        names: Sequence[str],
        positives: Sequence[int],
        rng: np.random.Generator,
        decorations: Sequence[Decoration] = (),
    ) -> Prompt:
        """The prompt of an image.

        Args:
            names: the data set's, or the image's own.
            positives: indices in ``names`` of the classes in the image.
            decorations: per name what the prompt says for it; none: the cleaned names.

        Returns:
            A prompt whose ``classes`` index ``names``. It lacks positives only where they exceed
            the token limit.
        """
        texts, costs = self._measure(tuple(names), tuple(decorations))
        classes = sample_classes(
            positives,
            texts,
            costs,
            # No separator follows the last name.
            budget=self.tokenizer.max_tokens
            - self.tokenizer.num_special_tokens
            + self.tokenizer.count(self.separator),
            max_negatives=self.max_negatives,
            full_negatives_prob=self.full_negatives_prob,
            shuffle=self.shuffle,
            rng=rng,
        )
        return class_prompt(
            [names[c] for c in classes],
            separator=self.separator,
            classes=classes,
            decorations=[decorations[c] for c in classes] if decorations else None,
        )

    def _measure(
        self, names: tuple[str, ...], decorations: tuple[Decoration, ...]
    ) -> tuple[list[str], list[int]]:
        """What tells the words of every name apart, and the tokens that they take."""
        key = (names, decorations)
        if key not in self._measured:
            if len(self._measured) >= MAX_MEASURED_LISTS:
                self._measured.pop(next(iter(self._measured)))
            words = ["".join(parts) for parts in decorations] or [clean_name(n) for n in names]
            texts = [" ".join(text.split()).casefold() for text in words]
            costs = self.tokenizer.counts([text + self.separator for text in words])
            self._measured[key] = (texts, costs)
        return self._measured[key]


class GroundingMapper:
    """Reads the image, augments it with its boxes, and adds what it is asked.

    In training the result has ``image``, ``instances`` and ``prompt``; ``gt_classes`` index the
    image's ``classes``, the data set's names, or the phrases of ``caption``. For evaluation it has
    ``image`` and ``classes`` or ``caption``, and ``prompt`` where the data set has its own words
    for its classes. ``height`` and ``width`` are the original's.

    With masks, ``instances`` have ``gt_masks`` and ``gt_has_mask``, (n,) bool: a box without a mask
    in its file has a rectangle, which is no truth about the mask.

    Where an image is mirrored, "left" and "right" change places in its ``caption``; a caption that
    is packed with others is whole in ``prompt`` only.

    A ``question``, its ``answers`` and ``target_captions`` are mirrored likewise; of the captions,
    training draws one. A record that asks for words only gets no prompt, classes or instances.

    Random numbers come from numpy's global state, as those of Detectron2's augmentations do.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        mask_format: str | None,
        class_names: Mapping[str, Sequence[str]],
        decorations: Mapping[str, Sequence[Decoration]],
        captions: Mapping[str, Sequence[str]],
        tokenizer: Tokenizer,
        class_prompter: ClassPrompter,
        caption_packer: CaptionPacker,
    ) -> None:
        """
        Args:
            image_format: order of the channels, ``INPUT.FORMAT``.
            mask_format: of ``gt_masks``, "polygon" (an image that has an RLE mask gets bitmasks
                all the same) or "bitmask"; None: no masks.
            class_names: of each data set. A record without ``dataset_name`` is of the first.
            decorations: of data sets with their own words, what a prompt says for each class.
            captions: of data sets whose captions are packed, those to draw negatives from.
            tokenizer: says how much of a caption fits.
            class_prompter: makes the training prompts of class names.
            caption_packer: puts negative captions around a caption.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.mask_format = mask_format
        self.class_names = dict(class_names)
        self.decorations = dict(decorations)
        self.captions = dict(captions)
        self.tokenizer = tokenizer
        self.class_prompter = class_prompter
        self.caption_packer = caption_packer

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool,
        class_names: Mapping[str, Sequence[str]],
        decorations: Mapping[str, Sequence[Decoration]] | None = None,
        captions: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Any]:
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "mask_format": cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
            "class_names": class_names,
            "decorations": decorations or {},
            "captions": captions or {},
            "tokenizer": tokenizer,
            "class_prompter": ClassPrompter(cfg, tokenizer),
            "caption_packer": CaptionPacker(cfg, tokenizer),
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The input dict of one record in Detectron2's format; the record is left as it is.

        Raises:
            FileNotFoundError, OSError: the image is missing, or no image.
            ValueError: nothing says what the image is asked, or a question or caption is empty.
        """
        record = copy.deepcopy(record)
        image = read_image(record[fields.FILE_NAME], self.image_format)
        detection_utils.check_image_size(record, image)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        record[fields.IMAGE] = torch.from_numpy(
            np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        )
        if is_text_task(record):
            record = self._ask_for_words(record, transforms)
        if asks_words_only(record):
            return record
        if fields.CAPTION not in record:
            record[fields.CLASSES] = self._names_of(record)
        annotations = record.pop("annotations", [])
        if not self.is_train:
            return self._ask_in_evaluation(record)
        if fields.CAPTION in record:
            prompt, annotations = self._ask_caption(record, annotations, transforms)
            instances = _to_instances(annotations, transforms, aug_input.image, self.mask_format)
        else:
            instances = _to_instances(annotations, transforms, aug_input.image, self.mask_format)
            prompt = self.class_prompter(
                record[fields.CLASSES],
                instances.gt_classes.unique().tolist(),
                _generator(),
                self._decorations_of(record),
            )
        asked = torch.isin(instances.gt_classes, torch.tensor(prompt.classes, dtype=torch.int64))
        record[fields.PROMPT] = prompt
        record[fields.INSTANCES] = instances[asked]
        return record

    def _ask_for_words(self, record: dict[str, Any], transforms: T.TransformList) -> dict[str, Any]:
        check_text_task(record, is_train=self.is_train)
        record = {key: value for key, value in record.items() if key not in EVALUATION_KEYS}
        if fields.MORE in record:
            record[fields.MORE] = [
                self._ask_for_words(text, transforms) for text in record[fields.MORE]
            ]
        if is_mirrored(transforms):
            record = mirrored(record)
        if self.is_train and fields.TARGET_CAPTIONS in record:
            captions = record[fields.TARGET_CAPTIONS]
            record[fields.TARGET_CAPTIONS] = [captions[_generator().integers(len(captions))]]
        return record

    def _ask_in_evaluation(self, record: dict[str, Any]) -> dict[str, Any]:
        decorations = self._decorations_of(record)
        if decorations:
            record[fields.PROMPT] = class_prompt(
                record[fields.CLASSES],
                separator=self.class_prompter.separator,
                decorations=decorations,
            )
        return record

    def _ask_caption(
        self,
        record: dict[str, Any],
        annotations: list[dict[str, Any]],
        transforms: T.TransformList,
    ) -> tuple[Prompt, list[dict[str, Any]]]:
        """The prompt of a caption, and the annotations with their phrases as classes."""
        phrases, labels = caption_labels({**record, "annotations": annotations})
        if is_mirrored(transforms):
            record[fields.CAPTION], phrases = swap_sides(record[fields.CAPTION], phrases)
            record[fields.PHRASES] = phrases
        prompt = fit_caption(record[fields.CAPTION], phrases, self.tokenizer)
        others = self.captions.get(record.get(fields.DATASET_NAME, ""))
        if others is not None:
            prompt = self.caption_packer(prompt, others, _generator())
        return prompt, _with_classes(annotations, labels)

    def _decorations_of(self, record: dict[str, Any]) -> Sequence[Decoration]:
        """The data set's own words for its classes; none for an image's own names."""
        dataset_name = record.get(fields.DATASET_NAME, "")
        decorations = self.decorations.get(dataset_name, ())
        if decorations and record.get(fields.CLASSES) == list(self.class_names[dataset_name]):
            return decorations
        return ()

    def _names_of(self, record: dict[str, Any]) -> list[str]:
        """The names that an image's class indices stand for."""
        if record.get(fields.CLASSES) is not None:
            return check_names(record[fields.CLASSES], self.class_prompter.separator)
        name = record.get(fields.DATASET_NAME, next(iter(self.class_names), ""))
        names = self.class_names.get(name, ())
        if not names:
            raise ValueError(
                f"nothing says what to look for in {record[fields.FILE_NAME]!r}: give it 'classes' "
                f"or a 'caption', or its data set {name!r} thing_classes in the metadata"
            )
        return list(names)


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Read an image of a dataset as (H, W, 3) uint8, as Detectron2's ``read_image`` does.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no image, or a broken one.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            image = ImageOps.exif_transpose(open_image(file))
            return detection_utils.convert_PIL_to_numpy(image, image_format)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"image {file_name!r} does not exist: check the data set's image directory, or take "
            "the image out of its annotations"
        ) from error
    # PIL reports broken files by any of these.
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(
            f"image {file_name!r} cannot be read ({error}): replace it, or take it out of the "
            "data set's annotations"
        ) from error


def _with_classes(
    annotations: list[dict[str, Any]], labels: Sequence[int | None]
) -> list[dict[str, Any]]:
    return [
        {**annotation, "category_id": label}
        for annotation, label in zip(annotations, labels, strict=True)
        if label is not None
    ]


def _generator() -> np.random.Generator:
    """Draws that follow from numpy's global state."""
    return np.random.default_rng(np.random.randint(2**32, dtype=np.uint32))  # noqa: NPY002


def _to_instances(
    annotations: list[dict[str, Any]],
    transforms: T.TransformList,
    image: np.ndarray,
    mask_format: str | None,
) -> Instances:
    """What the annotations have, without crowds and empty boxes; frame: the transformed image."""
    image_size = image.shape[:2]
    annotations = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    keys = ["bbox", "bbox_mode", "category_id"] + (["segmentation"] if mask_format else [])
    transformed = [
        detection_utils.transform_instance_annotations(
            {key: annotation[key] for key in keys if key in annotation}, transforms, image_size
        )
        for annotation in annotations
    ]
    if mask_format is None:
        instances = detection_utils.annotations_to_instances(transformed, image_size)
        return detection_utils.filter_empty_instances(instances)
    has_mask = ["segmentation" in annotation for annotation in transformed]
    for annotation in transformed:
        annotation.setdefault("segmentation", [_rectangle(annotation["bbox"])])
    # A polygon stays one where it can; a decoded RLE is an array.
    only_polygons = all(isinstance(a["segmentation"], list) for a in transformed)
    instances = detection_utils.annotations_to_instances(
        transformed, image_size, mask_format if only_polygons else "bitmask"
    )
    if not transformed:
        instances.gt_masks = PolygonMasks([])
    instances.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
    return detection_utils.filter_empty_instances(instances)


def _rectangle(box: Sequence[float]) -> np.ndarray:
    """A box (XYXY) as a polygon."""
    x1, y1, x2, y2 = box
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=np.float64)
