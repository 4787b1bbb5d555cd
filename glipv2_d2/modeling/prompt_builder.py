"""From an input dict to the prompts of its image.

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
from detectron2.structures import Instances

from glipv2_d2.dataset_classes import DatasetClasses
from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.messages import quote
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.structures.text import span_texts
from glipv2_d2.text.limits import check_text
from glipv2_d2.text.names import check_names, normalized_name
from glipv2_d2.text.permutations import permuted_prompts
from glipv2_d2.text.prompts import caption_prompt, class_prompts, known_labels
from glipv2_d2.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Lists of class names whose prompts are cached: a dataset has one, a service a few.
MAX_CACHED_LISTS = 64


class PromptBuilder:
    """Builds prompts from ``prompt``, ``caption`` or ``classes`` of an input dict."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        separator: str,
        max_classes: int,
        default_classes: Callable[[dict[str, Any], bool], Sequence[str]],
        num_orders: int = 0,
        accepts_negatives: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: limits the tokens of a prompt; longer lists are split into chunks.
            separator: between the class names of a prompt.
            max_classes: limit of class names per prompt at inference; 0: only the token limit.
            default_classes: called with an input without class names and with whether the model is
                in training, returns its class names.
            num_orders: orders of the class names to average over at inference, see
                :meth:`orders`; 0: the caller's order only.
            accepts_negatives: whether the model supports labels of the class ``NEGATIVE``.

        Raises:
            ValueError: ``num_orders`` is negative.
        """
        if num_orders < 0:
            raise ValueError(f"num_orders is {num_orders}; 0 is the caller's order")
        self.tokenizer = tokenizer
        self.separator = separator
        self.max_classes = max_classes
        self.default_classes = default_classes
        self.num_orders = num_orders
        self.accepts_negatives = accepts_negatives
        self._class_prompts_cache: LRUCache[Hashable, list[Prompt]] = LRUCache(MAX_CACHED_LISTS)
        self._caption_prompt_cache: LRUCache[Prompt, Prompt] = LRUCache(MAX_CACHED_LISTS)
        self._has_warned = False

    def for_inference(self, x: dict[str, Any]) -> list[Prompt]:
        """All prompts of an image: one, or one per chunk of a long list of class names."""
        return self._all_prompts(x, training=False)

    def all_for_training(self, x: dict[str, Any]) -> list[Prompt]:
        """All prompts of a training image, for models that encode every class name."""
        return self._all_prompts(x, training=True)

    def orders(self, prompt: Prompt) -> list[Prompt]:
        """The prompt with its class names in ``num_orders`` orders, for averaging label scores.

        The first order is sorted. The chunks do not depend on the caller's order either, so neither
        do the scores. Without ``num_orders`` and for captions: the prompt alone.
        """
        separable = prompt.is_class_list and prompt.text == self.separator.join(prompt.phrases)
        if self.num_orders <= 1 or not separable:
            return [prompt]
        return permuted_prompts(prompt, separator=self.separator, count=self.num_orders)

    def for_training(self, x: dict[str, Any]) -> tuple[Prompt, Instances]:
        """The prompt of a training image, and its ground truth.

        This project's mapper samples the prompt. For other mappers: all class names if they fit one
        prompt, else the image's own classes and random others up to the token limit. Boxes of
        classes that do not fit are dropped, as in GLIP's datasets, with one warning.
        """
        instances = x[fields.INSTANCES]
        if fields.PROMPT in x:
            return x[fields.PROMPT], instances
        if fields.CAPTION in x:
            return self._caption_prompt(x), instances
        names = self._class_names(x, training=True)
        prompts = self._class_prompts(names)
        if len(prompts) == 1:
            return prompts[0], instances
        prompt = self._prompt_with_positives(names, instances)
        return prompt, self._drop_missing_classes(instances, prompt, x)

    def _all_prompts(self, x: dict[str, Any], *, training: bool) -> list[Prompt]:
        if fields.PROMPT in x or fields.CAPTION in x:
            prompt = x[fields.PROMPT] if fields.PROMPT in x else self._caption_prompt(x)
            return [prompt if training else self._known_labels(prompt)]
        names = self._class_names(x, training=training)
        return self._class_prompts(
            names,
            max_classes=self.max_classes,
            negatives=self._negatives(x),
            is_sorted=self.num_orders > 0,
        )

    def _class_names(self, x: dict[str, Any], *, training: bool) -> tuple[str, ...]:
        names = x.get(fields.CLASSES)
        # An empty list is an error, not a request for the dataset's class names.
        return tuple(self.default_classes(x, training) if names is None else check_names(names))

    def _caption_prompt(self, x: dict[str, Any]) -> Prompt:
        if fields.PHRASES not in x:
            raise ValueError(
                f"the input with the caption {quote(x[fields.CAPTION])} has no 'phrases': pass the "
                "character spans to ground. Predictor.predict(caption=...) extracts the noun "
                "phrases; in training, the mapper GroundingMapper(cfg, is_train=True) sets them"
            )
        check_text(x[fields.CAPTION], "caption")
        return caption_prompt(x[fields.CAPTION], x[fields.PHRASES])

    def _known_labels(self, prompt: Prompt) -> Prompt:
        # Cached, so that one caption of many images is checked, and its warning logged, once.
        cached = self._caption_prompt_cache.find([prompt])
        if not cached:
            cached[prompt] = known_labels(prompt, self.tokenizer)
            self._caption_prompt_cache.keep(cached)
        return cached[prompt]

    def _negatives(self, x: dict[str, Any]) -> tuple[str, ...]:
        negatives = x.get(fields.NEGATIVES, ())
        if isinstance(negatives, str):
            raise ValueError(
                f"negatives must be a list of class names, not the string {quote(negatives)}"
            )
        if negatives and not self.accepts_negatives:
            raise ValueError(
                f"this model does not support negatives, {quote(list(negatives))}: leave them out, "
                "or choose a meta-architecture that does (GLIPv2)"
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
        cached = self._class_prompts_cache.find([key])
        if not cached:
            cached[key] = self._split(*key)
            self._class_prompts_cache.keep(cached)
        return cached[key]

    def _split(
        self,
        names: Sequence[str],
        max_classes: int = 0,
        negatives: Sequence[str] = (),
        is_sorted: bool = False,
    ) -> list[Prompt]:
        return class_prompts(
            names,
            self.tokenizer,
            separator=self.separator,
            max_tokens=self.tokenizer.max_tokens,
            max_classes=max_classes,
            negatives=negatives,
            key=normalized_name if is_sorted else None,
        )

    def _prompt_with_positives(self, names: tuple[str, ...], instances: Instances) -> Prompt:
        positives = instances.gt_classes.unique().tolist()
        if positives and not 0 <= positives[0] <= positives[-1] < len(names):
            raise ValueError(
                f"gt_classes {positives} are out of range for {len(names)} class names: classes "
                "count from 0"
            )
        others = [c for c in torch.randperm(len(names)).tolist() if c not in set(positives)]
        order = positives + others
        # Only the first prompt is needed: it has no more names than tokens.
        order = order[: self.tokenizer.max_tokens]
        first = self._split([names[c] for c in order])[0]
        return replace(first, classes=tuple(order[i] for i in first.classes))

    def _drop_missing_classes(
        self, instances: Instances, prompt: Prompt, x: dict[str, Any]
    ) -> Instances:
        """The ground truth whose classes are in the prompt."""
        classes = torch.tensor(prompt.classes, device=instances.gt_classes.device)
        is_in_prompt = torch.isin(instances.gt_classes, classes)
        if not bool(is_in_prompt.all()) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "dropped %d of %d boxes of %r: their classes do not fit a prompt of %d tokens; "
                "further images are not reported",
                int((~is_in_prompt).sum()),
                len(instances),
                x.get(fields.FILE_NAME),
                self.tokenizer.max_tokens,
            )
        return instances[is_in_prompt]


def caption_phrases(x: dict[str, Any], prompt: Prompt) -> list[str]:
    """The text of each phrase of a caption, in the caller's order, which ``pred_classes`` index.

    Args:
        x: an input dict with ``caption``.
        prompt: its prompt, which may leave phrases out.
    """
    if fields.PHRASES not in x:
        return prompt.phrases
    return span_texts(x[fields.CAPTION], x[fields.PHRASES])


def build_prompt_builder(
    cfg: CfgNode, tokenizer: Tokenizer, *, num_orders: int = 0, accepts_negatives: bool = False
) -> PromptBuilder:
    """The prompt builder of ``cfg.MODEL.PROMPT``; by default with the datasets' class names.

    Args:
        num_orders, accepts_negatives: see :class:`PromptBuilder`; only some models use them.
    """
    return PromptBuilder(
        tokenizer=tokenizer,
        separator=cfg.MODEL.PROMPT.SEPARATOR,
        max_classes=cfg.MODEL.PROMPT.MAX_CLASSES,
        default_classes=functools.partial(
            _default_classes,
            DatasetClasses(cfg.DATASETS.TRAIN, "DATASETS.TRAIN"),
            DatasetClasses(cfg.DATASETS.TEST, "DATASETS.TEST"),
        ),
        num_orders=num_orders,
        accepts_negatives=accepts_negatives,
    )


def _default_classes(
    of_train: DatasetClasses, of_test: DatasetClasses, x: dict[str, Any], training: bool
) -> Sequence[str]:
    return of_train(x) if training else of_test(x)
