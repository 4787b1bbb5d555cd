"""From an input dict to the prompts that its image is asked.

A *label* indexes the spans of one prompt, a *class* the caller's list (see structures.fields).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Instances

from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.prompts import caption_prompt, check_names, class_prompts
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
    ) -> None:
        """
        Args:
            separator: between the names of one prompt.
            max_tokens: of one prompt; longer lists are asked in several.
            max_classes: of one prompt at inference; 0: as many as the tokens allow.
            default_classes: called with whether the model trains, gives the names to ask where an
                input says nothing.
        """
        self.tokenizer = tokenizer
        self.separator = separator
        self.max_tokens = max_tokens
        self.max_classes = max_classes
        self.default_classes = default_classes
        self._prompts_of_names: dict[tuple[tuple[str, ...], int], list[Prompt]] = {}
        self._has_warned = False

    def for_inference(self, x: dict[str, Any]) -> list[Prompt]:
        """Every prompt that must be asked; more than one for a long list of classes."""
        if fields.PROMPT in x:
            return [x[fields.PROMPT]]
        if fields.CAPTION in x:
            return [self._caption_prompt(x)]
        return self._class_prompts(self._names_of(x, training=False), self.max_classes)

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
        prompts = self._class_prompts(names, max_classes=0)
        if len(prompts) == 1:
            return prompts[0], instances
        prompt = self._positives_first(names, instances)
        return prompt, self._asked(instances, prompt, x)

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

    def _class_prompts(self, names: tuple[str, ...], max_classes: int) -> list[Prompt]:
        key = (names, max_classes)
        if key not in self._prompts_of_names:
            if len(self._prompts_of_names) >= MAX_CACHED_LISTS:
                self._prompts_of_names.pop(next(iter(self._prompts_of_names)))
            self._prompts_of_names[key] = self._split(names, max_classes)
        return self._prompts_of_names[key]

    def _split(self, names: Sequence[str], max_classes: int) -> list[Prompt]:
        return class_prompts(
            names,
            self.tokenizer,
            separator=self.separator,
            max_tokens=self.max_tokens,
            max_classes=max_classes,
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
        first = self._split([names[c] for c in order], max_classes=0)[0]
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
