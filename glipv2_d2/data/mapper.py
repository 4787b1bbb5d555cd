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
from detectron2.structures import Instances

from glipv2_d2.data.prompt_sampling import sample_classes
from glipv2_d2.data.resize import build_augmentations
from glipv2_d2.data.sanitize import caption_labels, fit_caption
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.prompts import check_names, check_separator, class_prompt, clean_name
from glipv2_d2.text.tokenizer import Tokenizer


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
        self._measured: tuple[list[str], list[str], list[int]] = ([], [], [])

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
        self, names: Sequence[str], positives: Sequence[int], rng: np.random.Generator
    ) -> Prompt:
        """The prompt of an image.

        Args:
            names: the data set's, or the image's own.
            positives: indices in ``names`` of the classes in the image.

        Returns:
            A prompt whose ``classes`` index ``names``. It lacks positives only where they exceed
            the token limit.
        """
        texts, costs = self._measure(list(names))
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
        return class_prompt([names[c] for c in classes], separator=self.separator, classes=classes)

    def _measure(self, names: list[str]) -> tuple[list[str], list[int]]:
        """What the prompt says for every name, and the tokens that it takes."""
        if names != self._measured[0]:
            texts = [" ".join(clean_name(name).split()).casefold() for name in names]
            costs = self.tokenizer.counts([clean_name(name) + self.separator for name in names])
            self._measured = (names, texts, costs)
        return self._measured[1:]


class GroundingMapper:
    """Reads the image, augments it with its boxes, and adds what it is asked.

    In training the result has ``image``, ``instances`` and ``prompt``; ``gt_classes`` index the
    image's ``classes``, the data set's names, or the phrases of ``caption``. For evaluation it has
    ``image`` and ``classes`` or ``caption``. ``height`` and ``width`` are the original's.

    Random numbers come from numpy's global state, as those of Detectron2's augmentations do.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        class_names: Mapping[str, Sequence[str]],
        tokenizer: Tokenizer,
        class_prompter: ClassPrompter,
    ) -> None:
        """
        Args:
            image_format: order of the channels, ``INPUT.FORMAT``.
            class_names: of each data set. A record without ``dataset_name`` is of the first.
            tokenizer: says how much of a caption fits.
            class_prompter: makes the training prompts of class names.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.class_names = dict(class_names)
        self.tokenizer = tokenizer
        self.class_prompter = class_prompter

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool, class_names: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "class_names": class_names,
            "tokenizer": tokenizer,
            "class_prompter": ClassPrompter(cfg, tokenizer),
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The input dict of one record in Detectron2's format; the record is left as it is.

        Raises:
            FileNotFoundError, OSError: the image is missing, or no image.
            ValueError: nothing says what the image is asked.
        """
        record = copy.deepcopy(record)
        image = read_image(record[fields.FILE_NAME], self.image_format)
        detection_utils.check_image_size(record, image)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        record[fields.IMAGE] = torch.from_numpy(
            np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        )
        if fields.CAPTION not in record:
            record[fields.CLASSES] = self._names_of(record)
        annotations = record.pop("annotations", [])
        if not self.is_train:
            return record

        if fields.CAPTION in record:
            phrases, labels = caption_labels({**record, "annotations": annotations})
            prompt = fit_caption(record[fields.CAPTION], phrases, self.tokenizer)
            annotations = _with_classes(annotations, labels)
            instances = _to_instances(annotations, transforms, aug_input.image)
        else:
            instances = _to_instances(annotations, transforms, aug_input.image)
            positives = instances.gt_classes.unique().tolist()
            seed = np.random.randint(2**32, dtype=np.uint32)  # noqa: NPY002
            rng = np.random.default_rng(seed)
            prompt = self.class_prompter(record[fields.CLASSES], positives, rng)
        asked = torch.isin(instances.gt_classes, torch.tensor(prompt.classes, dtype=torch.int64))
        record[fields.PROMPT] = prompt
        record[fields.INSTANCES] = instances[asked]
        return record

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
    """Detectron2's ``read_image``, (H, W, 3) uint8, with errors that name the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no image, or a broken one.
    """
    try:
        return detection_utils.read_image(file_name, format=image_format)
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


def _to_instances(
    annotations: list[dict[str, Any]], transforms: T.TransformList, image: np.ndarray
) -> Instances:
    """Boxes (XYXY, pixels of the transformed image) and classes, without crowds and empty boxes."""
    image_size = image.shape[:2]
    transformed = [
        detection_utils.transform_instance_annotations(
            {key: annotation[key] for key in ("bbox", "bbox_mode", "category_id")},
            transforms,
            image_size,
        )
        for annotation in annotations
        if not annotation.get("iscrowd", 0)
    ]
    instances = detection_utils.annotations_to_instances(transformed, image_size)
    return detection_utils.filter_empty_instances(instances)
