"""From an input dict to the prompts that its image is asked.

A *label* indexes the spans of one prompt, a *class* the caller's list (see structures.fields).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.orders import name_orders
from glipv2_d2.text.prompts import (
    caption_prompt,
    check_names,
    class_prompts,
    normalized_name,
)
from glipv2_d2.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Lists of names whose prompts are kept: a data set has one, a service a few.
MAX_CACHED_LISTS = 64


class InputPrompts:
    """Reads ``prompt``, ``caption`` or ``classes`` of an input dict (see structures.fields)."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        separator: str,
        max_tokens: int,
        max_classes: int,
        default_classes: Callable[[bool], Sequence[str]],
        num_orders: int = 0,
        takes_negatives: bool = False,
    ) -> None:
        """
        Args:
            separator: between the names of one prompt.
            max_tokens: of one prompt; longer lists are asked in several.
            max_classes: of one prompt at inference; 0: as many as the tokens allow.
            default_classes: called with whether the model trains, gives the names to ask where an
                input says nothing.
            num_orders: in which the names of a prompt are asked at inference, see
                :meth:`orders`; 0: in the caller's alone.
            takes_negatives: the model knows what to do with labels of the class ``NEGATIVE``.

        Raises:
            ValueError: ``num_orders`` is negative.
        """
        if num_orders < 0:
            raise ValueError(f"MODEL.PROMPT.NUM_ORDERS is {num_orders}; 0 asks the caller's order")
        self.tokenizer = tokenizer
        self.separator = separator
        self.max_tokens = max_tokens
        self.max_classes = max_classes
        self.default_classes = default_classes
        self.num_orders = num_orders
        self.takes_negatives = takes_negatives
        self._prompts_of_names: LRUCache[Hashable, list[Prompt]] = LRUCache(MAX_CACHED_LISTS)
        self._has_warned = False

    def for_inference(self, x: dict[str, Any]) -> list[Prompt]:
        """Every prompt that must be asked; more than one for a long list of classes."""
        return self._all_prompts(x, training=False)

    def all_for_training(self, x: dict[str, Any]) -> list[Prompt]:
        """Every prompt of a training image, for models that need not choose one of them."""
        return self._all_prompts(x, training=True)

    def orders(self, prompt: Prompt) -> list[Prompt]:
        """The prompts over which the scores of the labels of a prompt are averaged.

        With ``num_orders`` these are so many orders of the names of a list of classes, the first
        of them the sorted one. Which names are asked together does not depend on the caller's order
        either, so no score does. For all else it is the prompt alone.
        """
        separable = prompt.is_class_list and prompt.text == self.separator.join(prompt.phrases)
        if self.num_orders <= 1 or not separable:
            return [prompt]
        return name_orders(prompt, separator=self.separator, count=self.num_orders)

    def for_training(self, x: dict[str, Any]) -> tuple[Prompt, Instances]:
        """The one prompt of a training image, and the ground truth that it asks for.

        A mapper of ours has sampled it. For other mappers: all names where they fit one prompt,
        else the image's own classes and as many random others as fit. Boxes of classes that do
        not fit are left out, as GLIP's data sets do, and the first time a warning says so.
        """
        instances = x[fields.INSTANCES]
        if fields.PROMPT in x:
            return x[fields.PROMPT], instances
        if fields.CAPTION in x:
            return self._caption_prompt(x), instances
        names = self._names_of(x, training=True)
        prompts = self._class_prompts(names)
        if len(prompts) == 1:
            return prompts[0], instances
        prompt = self._positives_first(names, instances)
        return prompt, self._asked(instances, prompt, x)

    def _all_prompts(self, x: dict[str, Any], *, training: bool) -> list[Prompt]:
        if fields.PROMPT in x:
            return [x[fields.PROMPT]]
        if fields.CAPTION in x:
            return [self._caption_prompt(x)]
        names = self._names_of(x, training=training)
        return self._class_prompts(
            names,
            max_classes=self.max_classes,
            negatives=self._negatives_of(x),
            is_sorted=self.num_orders > 0,
        )

    def _names_of(self, x: dict[str, Any], *, training: bool) -> tuple[str, ...]:
        names = x.get(fields.CLASSES)
        # An empty list is a mistake, and no request for the data set's names.
        return tuple(self.default_classes(training) if names is None else check_names(names))

    def _caption_prompt(self, x: dict[str, Any]) -> Prompt:
        if fields.PHRASES not in x:
            raise ValueError(
                f"the input with the caption {x[fields.CAPTION]!r} has no 'phrases': give the "
                "character spans of what to find, or use Predictor.predict(caption=...), which "
                "finds the noun phrases"
            )
        return caption_prompt(x[fields.CAPTION], x[fields.PHRASES])

    def _negatives_of(self, x: dict[str, Any]) -> tuple[str, ...]:
        negatives = x.get(fields.NEGATIVES, ())
        if isinstance(negatives, str):
            raise ValueError(f"negatives must be a list of names, not one string: {negatives!r}")
        if negatives and not self.takes_negatives:
            raise ValueError(
                f"this model has no use for negatives, {list(negatives)}: leave them out, or "
                "choose a MODEL.META_ARCHITECTURE that has one (GLIPv2)"
            )
        return tuple(negatives)

    def _class_prompts(
        self,
        names: tuple[str, ...],
        *,
        max_classes: int = 0,
        negatives: tuple[str, ...] = (),
        is_sorted: bool = False,
    ) -> list[Prompt]:
        key = (names, max_classes, negatives, is_sorted)
        known = self._prompts_of_names.find([key])
        if not known:
            known[key] = self._split(
                names,
                max_classes=max_classes,
                negatives=negatives,
                key=normalized_name if is_sorted else None,
            )
            self._prompts_of_names.keep(known)
        return known[key]

    def _split(self, names: Sequence[str], **options: Any) -> list[Prompt]:
        return class_prompts(
            names,
            self.tokenizer,
            separator=self.separator,
            max_tokens=self.max_tokens,
            **options,
        )

    def _positives_first(self, names: tuple[str, ...], instances: Instances) -> Prompt:
        positives = instances.gt_classes.unique().tolist()
        if positives and not 0 <= positives[0] <= positives[-1] < len(names):
            raise ValueError(
                f"gt_classes {positives} do not index the list of {len(names)} names: classes "
                "count from 0"
            )
        others = [c for c in torch.randperm(len(names)).tolist() if c not in set(positives)]
        order = positives + others
        # Only the first prompt is needed: no more names than tokens can fit in it.
        order = order[: self.max_tokens]
        first = self._split([names[c] for c in order])[0]
        return replace(first, classes=tuple(order[i] for i in first.classes))

    def _asked(self, instances: Instances, prompt: Prompt, x: dict[str, Any]) -> Instances:
        """The ground truth whose classes are in the prompt."""
        classes = torch.tensor(prompt.classes, device=instances.gt_classes.device)
        is_asked = torch.isin(instances.gt_classes, classes)
        if not bool(is_asked.all()) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d of %d boxes of %r are of classes that do not fit a prompt of %d tokens and "
                "were dropped; further images like it are not reported",
                int((~is_asked).sum()),
                len(instances),
                x.get(fields.FILE_NAME),
                self.max_tokens,
            )
        return instances[is_asked]


def build_input_prompts(cfg: CfgNode, tokenizer: Tokenizer, **options: Any) -> InputPrompts:
    """What ``cfg.MODEL.PROMPT`` asks; by default the names of the config's data sets.

    Args:
        options: further ones of :class:`InputPrompts`, which not every model has a use for.
    """
    return InputPrompts(
        tokenizer=tokenizer,
        separator=cfg.MODEL.PROMPT.SEPARATOR,
        max_tokens=cfg.MODEL.PROMPT.MAX_TOKENS,
        max_classes=cfg.MODEL.PROMPT.MAX_CLASSES,
        default_classes=functools.partial(dataset_classes, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST),
        **options,
    )


def dataset_classes(
    train_names: Sequence[str], test_names: Sequence[str], training: bool
) -> Sequence[str]:
    """The class names in the metadata of the config's data sets.

    They are the first one's. An input does not tell which data set it is from, so all that are
    known to have other names are an error.

    Raises:
        ValueError: there is no data set, it has no names, or another one has other names.
    """
    names = train_names if training else test_names
    if not names:
        which = "TRAIN" if training else "TEST"
        raise ValueError(
            f"the input has no 'classes', 'caption' or 'prompt', and DATASETS.{which} is empty: "
            "say what to look for"
        )
    metadata = MetadataCatalog.get(names[0])
    if not metadata.get("thing_classes") and names[0] in DatasetCatalog:
        DatasetCatalog.get(names[0])  # a lazily registered data set learns its names by loading
    classes = metadata.get("thing_classes")
    if not classes:
        raise ValueError(f"data set {names[0]!r} has no thing_classes in its metadata")
    for other in names[1:]:
        if list(MetadataCatalog.get(other).get("thing_classes", classes)) != list(classes):
            raise ValueError(
                f"the input has no 'classes', and the data sets {names[0]!r} and {other!r} have "
                "different names: use this project's loaders (tools/train_net.py), which say of "
                "every image what it is asked, or give 'classes'"
            )
    return classes
