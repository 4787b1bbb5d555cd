"""From an input dict to the prompts that its image is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.structures import Instances

from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.prompts import caption_prompt, class_prompts
from glipv2_d2.text.tokenizer import Tokenizer

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
            max_tokens, max_classes: of one prompt; longer lists are asked in several.
            default_classes: called with whether the model trains, gives the names to ask where an
                input says nothing.
        """
        self.tokenizer = tokenizer
        self.separator = separator
        self.max_tokens = max_tokens
        self.max_classes = max_classes
        self.default_classes = default_classes
        self._prompts_of_classes: dict[tuple[str, ...], list[Prompt]] = {}

    def for_inference(self, x: dict[str, Any]) -> list[Prompt]:
        """Every prompt that must be asked; more than one for a long list of classes."""
        if fields.PROMPT in x:
            return [x[fields.PROMPT]]
        if fields.CAPTION in x:
            return [self._caption_prompt(x)]
        return self._class_prompts(tuple(x.get(fields.CLASSES) or self.default_classes(False)))

    def for_training(self, x: dict[str, Any]) -> Prompt:
        """The one prompt of a training image.

        A mapper of ours has sampled it. For other mappers: all names where they fit one prompt,
        else the image's own classes and as many random others as fit.
        """
        if fields.PROMPT in x:
            return x[fields.PROMPT]
        if fields.CAPTION in x:
            return self._caption_prompt(x)
        names = tuple(x.get(fields.CLASSES) or self.default_classes(True))
        prompts = self._class_prompts(names)
        return prompts[0] if len(prompts) == 1 else self._positives_first(names, x["instances"])

    def _caption_prompt(self, x: dict[str, Any]) -> Prompt:
        if fields.PHRASES not in x:
            raise ValueError(
                f"the input with the caption {x[fields.CAPTION]!r} has no 'phrases': give the "
                "character spans of what to find, or use Predictor.predict(caption=...), which "
                "finds the noun phrases"
            )
        return caption_prompt(x[fields.CAPTION], x[fields.PHRASES])

    def _class_prompts(self, names: tuple[str, ...]) -> list[Prompt]:
        if names not in self._prompts_of_classes:
            if len(self._prompts_of_classes) >= MAX_CACHED_LISTS:
                self._prompts_of_classes.pop(next(iter(self._prompts_of_classes)))
            self._prompts_of_classes[names] = self._split(names)
        return self._prompts_of_classes[names]

    def _split(self, names: Sequence[str]) -> list[Prompt]:
        return class_prompts(
            names,
            self.tokenizer,
            separator=self.separator,
            max_tokens=self.max_tokens,
            max_classes=self.max_classes,
        )

    def _positives_first(self, names: tuple[str, ...], instances: Instances) -> Prompt:
        positives = instances.gt_classes.unique().tolist()
        others = [c for c in torch.randperm(len(names)).tolist() if c not in set(positives)]
        order = positives + others
        # Only the first prompt is needed: no more names than tokens can fit in it.
        order = order[: self.max_tokens]
        first = self._split([names[c] for c in order])[0]
        return Prompt(first.text, first.spans, tuple(order[i] for i in first.classes))
