"""What a classifier with a closed list of classes contributes to the scores of other class names.

M: embedded names of the closed classes. K: closed classes. D: width of the text embeddings.
T: class names to score, tokens or labels. A: regions or anchors.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.tracing import is_tracing
from glipv2_d2.messages import quote
from glipv2_d2.text.names import clean_name

# A name without evidence keeps a finite logit, so that training can raise its score.
MIN_EVIDENCE = 1e-5
MAX_EVIDENCE = 1 - 1e-6
# From this cosine two strings are the same name; reduced precision changes it by about 0.001.
EXACT_COSINE = 0.99

_SYNONYM_SEPARATORS = re.compile(r"[,|]")


class ClassEvidence(nn.Module):
    """Scores any class names by the probabilities of a closed list of classes.

    A class contributes to a name in proportion to the similarity of their text embeddings, as
    unseen classes are embedded by Norouzi et al. 2014 (ConSE, https://arxiv.org/abs/1312.5650). The
    linear clamp of the cosine is our choice. There are no parameters.
    """

    class_embeddings: Tensor
    class_of_embedding: Tensor

    def __init__(
        self,
        *,
        class_embeddings: Tensor,
        class_of_embedding: Sequence[int],
        num_classes: int,
        min_similarity: float = 0.45,
        max_similarity: float = 0.85,
    ) -> None:
        """
        Args:
            class_embeddings: (M, D) text embeddings of the names of the classes.
            class_of_embedding: the class of each embedding; synonyms have the same class.
            num_classes: K.
            min_similarity: a cosine up to which a name and a class are unrelated.
            max_similarity: a cosine from which they are synonyms. The defaults suit MiniLM.

        Raises:
            ValueError: a class has no embedding, an index is out of range, or
                ``min_similarity`` is not below ``max_similarity``.
        """
        super().__init__()
        if not min_similarity < max_similarity:
            raise ValueError(
                f"min_similarity is {min_similarity}, but must be below max_similarity, "
                f"{max_similarity}"
            )
        if len(class_of_embedding) != len(class_embeddings) or (
            set(class_of_embedding) != set(range(num_classes))
        ):
            raise ValueError(
                f"class_of_embedding has {len(class_of_embedding)} entries for "
                f"{len(class_embeddings)} embeddings: pass the class of each, and at least one "
                f"embedding for each of the {num_classes} classes"
            )
        self.num_classes = num_classes
        self.min_similarity = min_similarity
        self.max_similarity = max_similarity
        normalized = F.normalize(full_precision(class_embeddings), dim=-1)
        # Checkpoints do not depend on the text encoder or the class names.
        self.register_buffer("class_embeddings", normalized, persistent=False)
        self.register_buffer(
            "class_of_embedding", torch.tensor(list(class_of_embedding)), persistent=False
        )

    def similarity(self, text: Tensor) -> Tensor:
        """Similarity of T names to the classes, in 0..1.

        The largest value of clamp((cos - min_similarity) / (max_similarity - min_similarity), 0, 1)
        over the names of a class.

        Args:
            text: (..., T, D) text embeddings of any length.

        Returns:
            (..., T, K), float32 or wider.
        """
        return self._similarity_of(self._cosines(text))

    def exclusive_similarity(self, text: Tensor) -> Tensor:
        """:meth:`similarity`, but a name of a class is similar to that class only.

        A classifier that knows a class needs no evidence for it from related ones: a cat is no
        evidence for a dog. A text is a name of a class if their cosine is at least 0.99.

        Args:
            text: (..., T, D) text embeddings of any length.

        Returns:
            (..., T, K), float32 or wider.
        """
        cosines = self._cosines(text)
        is_exact = cosines >= EXACT_COSINE
        is_related = ~is_exact & is_exact.any(dim=-1, keepdim=True)
        return self._similarity_of(cosines).masked_fill(is_related, 0)

    def _cosines(self, text: Tensor) -> Tensor:
        """(..., T, K): the largest cosine over the names of each class."""
        with torch.autocast(text.device.type, enabled=False):
            normalized = F.normalize(full_precision(text), dim=-1)
            cosines = normalized @ self.class_embeddings.to(normalized.dtype).T  # (..., T, M)
        index = self.class_of_embedding.expand(cosines.shape)
        lowest = cosines.new_full((*cosines.shape[:-1], self.num_classes), -1.0)
        return lowest.scatter_reduce(-1, index, cosines, "amax")

    def _similarity_of(self, cosines: Tensor) -> Tensor:
        linear = (cosines - self.min_similarity) / (self.max_similarity - self.min_similarity)
        return linear.clamp(0, 1)

    @staticmethod
    def best(class_probs: Tensor, similarity: Tensor) -> Tensor:
        """The largest product of a class's probability and similarity.

        For independent classes (sigmoid). It takes the memory of a few (..., A, T) tensors.

        Args:
            class_probs: (..., A, K) probabilities.
            similarity: (..., T, K), see :meth:`similarity`; its dimensions before T are those of
                ``class_probs`` before A.

        Returns:
            (..., A, T), in 0..1.
        """
        if is_tracing():
            # Which classes are related is data, which a tracer would record as a constant.
            products = (
                class_probs[..., k, None] * similarity[..., None, :, k]
                for k in range(class_probs.shape[-1])
            )
            return functools.reduce(torch.maximum, products)
        return _best(class_probs, similarity)[0]

    @staticmethod
    def best_classes(class_probs: Tensor, similarity: Tensor) -> Tensor:
        """The class that contributes most to each name.

        Of a name without evidence, it is the region's most probable class.

        Args:
            class_probs, similarity: as in :meth:`best`.

        Returns:
            (..., A, T) int64.
        """
        with torch.no_grad():
            evidence, classes = _best(class_probs, similarity)
            most_probable = class_probs.argmax(dim=-1, keepdim=True)
        return torch.where(evidence > 0, classes, most_probable)

    @staticmethod
    def expected(class_probs: Tensor, similarity: Tensor) -> Tensor:
        """The sum over classes of probability times similarity, at most 1.

        For exclusive classes (softmax): the expected similarity of the region's class.

        Args:
            class_probs, similarity: as in :meth:`best`.

        Returns:
            (..., A, T), in 0..1.
        """
        with torch.autocast(class_probs.device.type, enabled=False):
            probs = full_precision(class_probs)
            return (probs @ similarity.to(probs.dtype).transpose(-1, -2)).clamp(max=1)


def evidence_logits(evidence: Tensor) -> Tensor:
    """Logits of evidence (probabilities), clamped to 1e-5 .. 1 - 1e-6 to keep them finite."""
    return full_precision(evidence).clamp(MIN_EVIDENCE, MAX_EVIDENCE).logit()


def split_synonyms(class_name: str) -> list[str]:
    """The names of a class, which commas or ``|`` separate; cleaned as prompts do.

    >>> split_synonyms("tench, Tinca tinca")
    ['tench', 'Tinca tinca']
    >>> split_synonyms("couch|sofa")
    ['couch', 'sofa']
    """
    names = [clean_name(name).strip() for name in _SYNONYM_SEPARATORS.split(class_name)]
    return [name for name in names if name]


def build_class_evidence(
    class_names: Sequence[str],
    embed: Callable[[Sequence[str]], Tensor],
    *,
    min_similarity: float = 0.45,
    max_similarity: float = 0.85,
) -> ClassEvidence:
    """Embed the names of closed classes.

    Args:
        class_names: the name of each class, in the order of the classifier. Commas or ``|``
            separate synonyms (:func:`split_synonyms`).
        embed: maps N strings to (N, D), in the space of the names to score; a
            :class:`~glipv2_d2.modeling.language.text_embedder.TextEmbedder`, for example.
        min_similarity, max_similarity: as in :class:`ClassEvidence`.

    Raises:
        ValueError: there are no names, or a name has no words.
    """
    if not class_names:
        raise ValueError("class_names is empty: pass the class names of the classifier")
    names_per_class = [split_synonyms(class_name) for class_name in class_names]
    for i, names in enumerate(names_per_class):
        if not names:
            raise ValueError(
                f"class name {quote(class_names[i])} (index {i}) has no words: rename it"
            )
    names = [name for names_of_class in names_per_class for name in names_of_class]
    distinct = list(dict.fromkeys(names))
    row_of = {name: row for row, name in enumerate(distinct)}
    return ClassEvidence(
        class_embeddings=embed(distinct)[[row_of[name] for name in names]],
        class_of_embedding=[i for i, names in enumerate(names_per_class) for _ in names],
        num_classes=len(class_names),
        min_similarity=min_similarity,
        max_similarity=max_similarity,
    )


def _best(class_probs: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The largest product of each name, and its class: (..., A, T) each; 0 without evidence."""
    batch = torch.broadcast_shapes(class_probs.shape[:-2], similarity.shape[:-2])
    shape = (*batch, class_probs.shape[-2])
    dtype = torch.promote_types(class_probs.dtype, similarity.dtype)
    none = class_probs.new_zeros(shape, dtype=dtype)
    first = torch.zeros(shape, dtype=torch.int64, device=class_probs.device)
    num_names, num_classes = similarity.shape[-2:]
    # Few classes are related to a name; all names are copied to the CPU at once.
    num_texts = math.prod(similarity.shape[:-2])
    per_text = similarity.detach().reshape(num_texts, num_names, num_classes)
    is_related = (per_text > 0).any(dim=0).cpu()
    best, best_classes = [], []
    for t in range(num_names):
        related = is_related[t].nonzero().squeeze(1).to(class_probs.device)
        if len(related) == 0:
            best.append(none)
            best_classes.append(first)
            continue
        products = class_probs[..., related] * similarity[..., t, None, related]
        values, positions = products.max(dim=-1)
        best.append(values)
        best_classes.append(related[positions])
    if not best:
        return none[..., None][..., :0], first[..., None][..., :0]
    return torch.stack(best, dim=-1), torch.stack(best_classes, dim=-1)
