"""Maps a dataset's record to the model's input dict (:mod:`glipv2_d2.structures.fields`)."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances, PolygonMasks

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.data.caption_transforms import CaptionPacker, is_flipped, swap_left_right
from glipv2_d2.data.class_alignment import class_keys as keys_of_classes
from glipv2_d2.data.prompt_sampling import sample_classes
from glipv2_d2.data.record_tasks import LOCALIZATION_TASKS, TEXT_TASKS, record_tasks
from glipv2_d2.data.resize import build_augmentations
from glipv2_d2.data.sanitize import caption_labels, fit_caption
from glipv2_d2.data.text_tasks import (
    EVALUATION_KEYS,
    check_text_task,
    mirror_text_fields,
)
from glipv2_d2.dataset_classes import DatasetClasses
from glipv2_d2.images import ChannelOrder, read_image
from glipv2_d2.structures import Prompt, QueryKind, fields
from glipv2_d2.text.names import check_names, clean_name, normalized_name
from glipv2_d2.text.prompts import Decoration, check_separator, class_prompt, none_known
from glipv2_d2.text.tokenizer import Tokenizer

# Class names and their custom prompt texts, which may be empty.
_ClassTexts = tuple[tuple[str, ...], tuple[Decoration, ...]]

_T = TypeVar("_T")

# Lists of class names whose token counts are cached; a dataset has one list.
MAX_CACHED_LISTS = 64


class ClassPromptSampler(Configurable):
    """Samples training prompts of class names: the positives of an image and random negatives."""

    config_keys: ClassVar[dict[str, str]] = {
        "separator": "MODEL.PROMPT.SEPARATOR",
        "max_negatives": "DATALOADER.PROMPT.MAX_NEGATIVES",
        "full_negatives_prob": "DATALOADER.PROMPT.FULL_NEGATIVES_PROB",
        "shuffle": "DATALOADER.PROMPT.SHUFFLE",
    }

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
            separator: string between two class names of a prompt.
            max_negatives, full_negatives_prob, shuffle: see :func:`sample_classes`.

        Raises:
            ValueError: the tokenizer would merge two names around this separator.
        """
        check_separator(separator, tokenizer)
        self.tokenizer = tokenizer
        self.separator = separator
        self.max_negatives = max_negatives
        self.full_negatives_prob = full_negatives_prob
        self.shuffle = shuffle
        # All images of a dataset share one list of class names.
        self._cache: dict[_ClassTexts, list[int]] = {}

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
        keys: Sequence[str],
        positives: Sequence[int],
        rng: np.random.Generator,
        decorations: Sequence[Decoration] = (),
        absent: Sequence[int] | None = None,
    ) -> Prompt:
        """Sample the prompt of an image.

        Args:
            names: class names of the dataset, or of the image.
            keys: per name, its key: names of one key are one class.
            positives: indices in ``names`` of the classes in the image.
            decorations: custom prompt text per name; if empty, the cleaned names are used.
            absent: the classes that are known not to be in the image; None: all but the positives.

        Returns:
            A prompt whose ``classes`` index ``names``. It contains the keys of all positives that
            fit the token limit and have a word in the tokenizer's vocabulary.

        Raises:
            ValueError: no name has such a word.
        """
        classes = sample_classes(
            positives,
            keys,
            self._costs(tuple(names), tuple(decorations)),
            # Costs include a separator, but none follows the last name.
            budget=self.tokenizer.max_tokens
            - self.tokenizer.num_special_tokens
            + self.tokenizer.count(self.separator),
            max_negatives=self.max_negatives,
            full_negatives_prob=self.full_negatives_prob,
            shuffle=self.shuffle,
            rng=rng,
            candidates=absent,
        )
        prompt = class_prompt(
            [names[c] for c in classes],
            separator=self.separator,
            classes=classes,
            decorations=[decorations[c] for c in classes] if decorations else None,
        )
        return replace(prompt, label_keys=tuple(keys[c] for c in classes))

    def _costs(self, names: tuple[str, ...], decorations: tuple[Decoration, ...]) -> list[int]:
        """The cost of every name.

        A name without a word in the tokenizer's vocabulary never fits: inference ignores it, too.
        """
        key = (names, decorations)
        if key not in self._cache:
            if len(self._cache) >= MAX_CACHED_LISTS:
                self._cache.pop(next(iter(self._cache)))
            texts = ["".join(parts) for parts in decorations] or [clean_name(n) for n in names]
            costs = self.tokenizer.counts([text + self.separator for text in texts])
            labels = [decoration.name for decoration in decorations] or texts
            is_known = self.tokenizer.are_known(labels)
            if not any(is_known):
                raise ValueError(none_known(names))
            self._cache[key] = [
                cost if known else sys.maxsize for cost, known in zip(costs, is_known, strict=True)
            ]
        return self._cache[key]


@functools.lru_cache(maxsize=MAX_CACHED_LISTS)
def _own_keys(names: tuple[str, ...], decorations: tuple[Decoration, ...]) -> list[str]:
    """The keys of a list of names without other datasets; of custom prompt texts, those texts."""
    if decorations:
        return [normalized_name("".join(parts)) for parts in decorations]
    return keys_of_classes({"": names}, {})[""]


class GroundingMapper(Configurable):
    """Loads and augments the image of a record with its boxes, and builds the prompt.

    In training the input dict has ``image``, ``instances`` and ``prompt``; ``gt_classes`` index
    the image's ``classes``, the dataset's class names, or the phrases of ``caption``. For
    evaluation it has ``image`` and ``classes`` or ``caption``, and a ``prompt`` if the dataset has
    custom prompt texts; with a text task, ``ground`` in place of the ``caption``, which has the
    truth. ``height`` and ``width`` are those of the upright image, before its resize.

    With masks, ``instances`` have ``gt_masks`` and ``gt_has_mask``, (n,) bool: a box without an
    annotated mask gets its rectangle as a placeholder.

    A horizontal flip swaps "left" and "right" in the ``caption``, in a ``question``, its
    ``answers`` and the ``target_captions``, of which training samples one. Captions packed around
    ``caption`` are in ``prompt`` only. A record with text tasks only gets no prompt, classes or
    instances.

    Random numbers come from numpy's global state, as in Detectron2's augmentations.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: ChannelOrder,
        mask_format: str | None,
        class_names: Mapping[str, Sequence[str]],
        decorations: Mapping[str, Sequence[Decoration]],
        captions: Mapping[str, Sequence[str]],
        tokenizer: Tokenizer,
        class_prompt_sampler: ClassPromptSampler,
        caption_packer: CaptionPacker,
        default_classes: Callable[[dict[str, Any]], Sequence[str]] | None = None,
        class_keys: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """
        Args:
            image_format: order of the channels, "BGR" or "RGB".
            mask_format: format of ``gt_masks``, "polygon" (an image with an RLE mask still gets
                bitmasks) or "bitmask"; None loads no masks.
            class_names: class names per dataset. A record without ``dataset_name`` belongs to the
                first.
            decorations: custom prompt texts of the classes, per dataset that has them.
            captions: captions to sample negatives from, per dataset whose captions are packed.
            tokenizer: limits the tokens of a caption.
            class_prompt_sampler: samples training prompts of class names.
            caption_packer: packs negative captions around a caption.
            default_classes: returns the class names of a record, in place of ``class_names``.
            class_keys: the keys of ``class_names`` (:mod:`glipv2_d2.data.class_alignment`), per
                dataset; without them, those of each dataset alone.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.mask_format = mask_format
        self.class_names = dict(class_names)
        self.decorations = dict(decorations)
        self.captions = dict(captions)
        self.tokenizer = tokenizer
        self.class_prompt_sampler = class_prompt_sampler
        self.caption_packer = caption_packer
        self.default_classes = default_classes
        self.class_keys = dict(class_keys or {})

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool,
        class_names: Mapping[str, Sequence[str]] | None = None,
        decorations: Mapping[str, Sequence[Decoration]] | None = None,
        captions: Mapping[str, Sequence[str]] | None = None,
        class_keys: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Any]:
        """Read the config.

        Without ``class_names`` they are those of ``DATASETS.TRAIN`` or ``TEST``, so that the mapper
        works in any loader. Only this project's loaders pass the other arguments.
        """
        key = "TRAIN" if is_train else "TEST"
        default_classes = DatasetClasses(cfg.DATASETS[key], f"DATASETS.{key}")
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "mask_format": cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
            "class_names": class_names or {},
            "default_classes": default_classes if class_names is None else None,
            "decorations": decorations or {},
            "captions": captions or {},
            "class_keys": class_keys,
            "tokenizer": tokenizer,
            "class_prompt_sampler": ClassPromptSampler(cfg, tokenizer),
            "caption_packer": CaptionPacker(cfg, tokenizer),
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The input dict of one record in Detectron2's format. The record is not modified.

        Raises:
            FileNotFoundError: the image does not exist.
            ValueError: the image cannot be decoded or has another size than recorded, has no class
                names and no caption, or a question or caption is empty.
        """
        record = copy.deepcopy(record)
        tasks = record_tasks(record)
        image = read_image(record[fields.FILE_NAME], self.image_format)
        detection_utils.check_image_size(record, image)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        record[fields.IMAGE] = torch.from_numpy(
            np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        )
        if tasks & TEXT_TASKS:
            record = self._map_text_fields(record, transforms)
        if not tasks & LOCALIZATION_TASKS:
            return record
        if QueryKind.DETECT in tasks:
            record[fields.CLASSES] = self._class_names_of(record)
        annotations = record.pop("annotations", [])
        if not self.is_train and QueryKind.GROUND in tasks and tasks & TEXT_TASKS:
            return _to_ground(record)
        if not self.is_train:
            return self._with_custom_prompt(record)
        if QueryKind.GROUND in tasks:
            prompt, annotations = self._caption_prompt(record, annotations, transforms)
            instances = _to_instances(annotations, transforms, aug_input.image, self.mask_format)
        else:
            instances = _to_instances(annotations, transforms, aug_input.image, self.mask_format)
            keys = self._keys_of(record)
            prompt = self.class_prompt_sampler(
                record[fields.CLASSES],
                keys,
                instances.gt_classes.unique().tolist(),
                _generator(),
                self._decorations_of(record),
                record.get(fields.ABSENT_CLASSES),
            )
            # Another class of the same key may be in the prompt.
            in_prompt = dict(zip(prompt.label_keys, prompt.classes, strict=True))
            classes = [in_prompt.get(keys[c], c) for c in instances.gt_classes.tolist()]
            instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        is_label = torch.isin(instances.gt_classes, torch.tensor(prompt.classes, dtype=torch.int64))
        record[fields.PROMPT] = prompt
        record[fields.INSTANCES] = instances[is_label]
        return record

    def _map_text_fields(
        self, record: dict[str, Any], transforms: T.TransformList
    ) -> dict[str, Any]:
        """The record with flipped text fields and, in training, one sampled target caption."""
        check_text_task(record, is_train=self.is_train)
        record = {key: value for key, value in record.items() if key not in EVALUATION_KEYS}
        if fields.MORE in record:
            record[fields.MORE] = [
                self._map_text_fields(text, transforms) for text in record[fields.MORE]
            ]
        if is_flipped(transforms):
            record = mirror_text_fields(record)
        if self.is_train and fields.TARGET_CAPTIONS in record:
            captions = record[fields.TARGET_CAPTIONS]
            record[fields.TARGET_CAPTIONS] = [captions[_generator().integers(len(captions))]]
        return record

    def _with_custom_prompt(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with a prompt of its dataset's custom texts, if the dataset has them."""
        decorations = self._decorations_of(record)
        if decorations:
            record[fields.PROMPT] = class_prompt(
                record[fields.CLASSES],
                separator=self.class_prompt_sampler.separator,
                decorations=decorations,
            )
        return record

    def _caption_prompt(
        self,
        record: dict[str, Any],
        annotations: list[dict[str, Any]],
        transforms: T.TransformList,
    ) -> tuple[Prompt, list[dict[str, Any]]]:
        """The prompt of a caption, and the annotations with phrase indices as classes."""
        phrases, labels = caption_labels({**record, "annotations": annotations})
        if is_flipped(transforms):
            record[fields.CAPTION], phrases = swap_left_right(record[fields.CAPTION], phrases)
            record[fields.PHRASES] = phrases
        prompt = fit_caption(record[fields.CAPTION], phrases, self.tokenizer)
        negatives = self.captions.get(record.get(fields.DATASET_NAME, ""))
        if negatives is not None:
            prompt = self.caption_packer(prompt, negatives, _generator())
        return prompt, _with_classes(annotations, labels)

    def _decorations_of(self, record: dict[str, Any]) -> Sequence[Decoration]:
        """The dataset's custom prompt texts; empty if the image has class names of its own."""
        return self._of_dataset(record, self.decorations)

    def _keys_of(self, record: dict[str, Any]) -> Sequence[str]:
        """The key of each class name."""
        decorations = self._decorations_of(record)
        keys = () if decorations else self._of_dataset(record, self.class_keys)
        return keys or _own_keys(tuple(record[fields.CLASSES]), tuple(decorations))

    def _of_dataset(
        self, record: dict[str, Any], values: Mapping[str, Sequence[_T]]
    ) -> Sequence[_T]:
        """The values of a dataset's classes; none if the image has class names of its own."""
        dataset_name = record.get(fields.DATASET_NAME, "")
        class_names = list(self.class_names.get(dataset_name, ()))
        of_dataset = values.get(dataset_name, ())
        return of_dataset if record.get(fields.CLASSES) == class_names else ()

    def _class_names_of(self, record: dict[str, Any]) -> list[str]:
        """The class names that the image's class indices refer to."""
        if record.get(fields.CLASSES) is not None:
            return check_names(record[fields.CLASSES], self.class_prompt_sampler.separator)
        if self.default_classes is not None:
            return list(self.default_classes(record))
        name = record.get(fields.DATASET_NAME, next(iter(self.class_names), ""))
        names = self.class_names.get(name, ())
        if not names:
            raise ValueError(
                f"image {record[fields.FILE_NAME]!r} has no class names: set 'classes' or "
                f"'caption' in its record, or thing_classes in the metadata of dataset {name!r}"
            )
        return list(names)


def _to_ground(record: dict[str, Any]) -> dict[str, Any]:
    """The input dict that requests the text of a record and its boxes, without the truth."""
    truth = (fields.CAPTION, fields.PHRASES)
    return {key: value for key, value in record.items() if key not in truth} | {fields.GROUND: True}


def _with_classes(
    annotations: list[dict[str, Any]], labels: Sequence[int | None]
) -> list[dict[str, Any]]:
    return [
        {**annotation, "category_id": label}
        for annotation, label in zip(annotations, labels, strict=True)
        if label is not None
    ]


def _generator() -> np.random.Generator:
    """A generator seeded from numpy's global state."""
    return np.random.default_rng(np.random.randint(2**32, dtype=np.uint32))  # noqa: NPY002


def _to_instances(
    annotations: list[dict[str, Any]],
    transforms: T.TransformList,
    image: np.ndarray,
    mask_format: str | None,
) -> Instances:
    """Instances in the frame of the transformed image, without crowds and empty boxes."""
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
    # Transformed polygons are lists, a transformed RLE is an array.
    only_polygons = all(isinstance(a["segmentation"], list) for a in transformed)
    instances = detection_utils.annotations_to_instances(
        transformed, image_size, mask_format if only_polygons else "bitmask"
    )
    if not transformed:
        instances.gt_masks = PolygonMasks([])
    instances.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
    return detection_utils.filter_empty_instances(instances)


def _rectangle(box: Sequence[float]) -> np.ndarray:
    """The corners of a box (XYXY) as a flat polygon."""
    x1, y1, x2, y2 = box
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=np.float64)
