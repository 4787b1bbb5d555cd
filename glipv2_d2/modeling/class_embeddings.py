"""The text embeddings of the classes of an image, for models without fusion.

L: classes of an image. D: width of a text embedding. K: closed classes of a detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.class_evidence import ClassEvidence
from glipv2_d2.modeling.heads.region_word_score import MAX_LOGIT
from glipv2_d2.modeling.heads.roi_heads import mean_text
from glipv2_d2.modeling.language import LanguageBackbone, LanguageCache
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ClassEmbeddings:
    """Text embeddings of the L classes that the regions of one image are scored against.

    Attributes:
        embeddings: (L, D).
        classes: the class index of each embedding, all different.
        similarity: (L, K), to the closed classes of a detector (see
            :class:`~glipv2_d2.modeling.class_evidence.ClassEvidence`); None: the detector has none.

    Raises:
        ValueError: a class has several embeddings.
    """

    embeddings: Tensor
    classes: tuple[int, ...]
    similarity: Tensor | None = None

    def __post_init__(self) -> None:
        assert len(self.embeddings) == len(self.classes), (self.embeddings.shape, self.classes)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"a prompt has several labels of one class, classes {self.classes}: a model "
                "without fusion scores one label per class"
            )

    @staticmethod
    def cat(parts: Sequence[ClassEmbeddings]) -> ClassEmbeddings:
        """Concatenate at least one part, without similarities."""
        return ClassEmbeddings(
            torch.cat([part.embeddings for part in parts]),
            tuple(c for part in parts for c in part.classes),
        )

    @property
    def num_classes(self) -> int:
        """The least number of columns that holds every class index."""
        return max(self.classes, default=-1) + 1

    @property
    def closed_set_similarity(self) -> Tensor:
        """(L, K).

        Raises:
            ValueError: there is no similarity.
        """
        if self.similarity is None:
            raise ValueError(
                "class embeddings have no similarity to closed classes: set the detector's class "
                "names (MODEL.CLOSED_SET), or choose heads that score text alone"
            )
        return self.similarity

    def to_columns(self, scores: Tensor, num_columns: int) -> Tensor:
        """Logits of the L classes in the columns of their indices.

        Args:
            scores: (R, L) logits.
            num_columns: of the result, at least ``num_classes``.

        Returns:
            (R, num_columns); the other columns are ``-MAX_LOGIT``.
        """
        columns = torch.tensor(self.classes, dtype=torch.int64, device=scores.device)
        logits = scores.new_full((len(scores), num_columns), -MAX_LOGIT)
        return logits.index_copy(1, columns, scores)


def embed_classes(
    prompts_per_image: Sequence[Sequence[Prompt]],
    *,
    tokenizer: Tokenizer,
    language_backbone: LanguageBackbone,
    language_cache: LanguageCache,
    device: torch.device,
    class_evidence: ClassEvidence | None = None,
) -> list[ClassEmbeddings]:
    """Embed the classes of each image, over all of its prompts.

    A class embedding is the mean over the tokens of its name. Prompts that several images share are
    encoded once. Labels without tokens, which only captions may have, are left out.

    Args:
        class_evidence: adds the similarities to closed classes; a name of a class is similar to
            that class only.
    """
    prompt_of = {_key(prompt): prompt for prompts in prompts_per_image for prompt in prompts}
    tokens = tokenizer(list(prompt_of.values()))
    has_tokens = [positive_map.any(dim=1).tolist() for positive_map in tokens.positive_maps]
    tokens = tokens.to(device)
    text = language_cache(language_backbone, tokens)
    row_of = {key: row for row, key in enumerate(prompt_of)}

    def embed(prompt: Prompt) -> ClassEmbeddings:
        row = row_of[_key(prompt)]
        embeddings = mean_text(full_precision(text.hidden[row]), tokens.positive_maps[row])
        labels = [label for label, has_any in enumerate(has_tokens[row]) if has_any]
        return ClassEmbeddings(embeddings[labels], tuple(prompt.classes[label] for label in labels))

    per_image = [
        ClassEmbeddings.cat([embed(prompt) for prompt in prompts]) for prompts in prompts_per_image
    ]
    if class_evidence is None:
        return per_image
    return [
        ClassEmbeddings(
            classes.embeddings,
            classes.classes,
            class_evidence.exclusive_similarity(classes.embeddings),
        )
        for classes in per_image
    ]


def _key(prompt: Prompt) -> tuple[Any, ...]:
    """The parts of a prompt that its label embeddings depend on."""
    return prompt.text, prompt.spans


def num_columns(
    class_embeddings: Sequence[ClassEmbeddings], *, num_classes: int, training: bool
) -> int:
    """The number of class columns of a batch: in training ``num_classes``, else the least.

    Raises:
        ValueError: in training, a class index is ``num_classes`` or more.
    """
    needed = max(classes.num_classes for classes in class_embeddings)
    if training and needed > num_classes:
        raise ValueError(
            f"num_classes is {num_classes}, but class_embeddings has class {needed - 1}: for "
            "training, set num_classes to the length of the longest list of class names"
        )
    return num_classes if training else needed


def check_ground_truth(x: dict[str, Any], classes: ClassEmbeddings) -> None:
    """Raise a ValueError where an input has boxes of classes that its prompts do not have."""
    gt_classes = set(x[fields.INSTANCES].gt_classes.tolist())
    if missing := sorted(gt_classes - set(classes.classes)):
        raise ValueError(
            f"gt_classes {missing} of {x.get(fields.FILE_NAME, 'an image')!r} are not among the "
            f"classes of its prompts, {sorted(classes.classes)}: the mapper must drop such boxes "
            "or add their classes. Names without known words and duplicate names are left out of "
            "prompts"
        )
