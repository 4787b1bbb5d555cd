"""Phrases read one by one by a sentence encoder: the language backbone of small models.

N: prompts. T: tokens of the longest prompt. P: labels of all prompts. D: width of the features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor
from transformers import BertModel

from glipv2_d2.modeling.generation.kv_cache import KVCache
from glipv2_d2.modeling.language.bert import BertLanguageBackbone
from glipv2_d2.modeling.language.build import LANGUAGE_BACKBONE_REGISTRY
from glipv2_d2.modeling.language.cache import PhraseCache, PhraseIds, weights_version
from glipv2_d2.structures import Prompt, TextFeatures, TokenBatch

# 8192 phrases of MiniLM are 12 MiB.
_CACHED_PHRASES = 8192
# Phrases encoded at once, so that the first prompt of a long list does not need much memory.
_PHRASES_PER_BATCH = 256


@LANGUAGE_BACKBONE_REGISTRY.register()
class PhraseLanguageBackbone(BertLanguageBackbone):
    """Encodes every label of a prompt alone and writes its one vector on all of its tokens.

    Our choice, not GLIP's. A sentence encoder such as MiniLM is trained to give one vector for one
    phrase, and names that it has never seen in a detection prompt stay near their synonyms. What
    else is asked in the prompt, and in which order, does not change a phrase's features, so those
    of a frozen encoder are computed once per phrase, in training too.

    A phrase's vector is the mean over its tokens with [CLS] and [SEP], as sentence-transformers
    pools, scaled to length sqrt(D): its entries then vary about as much as those of a layer norm's
    output, which is what the fused head otherwise reads. Tokens of several labels get their mean.

    Tokens outside the labels are zero where they only separate labels. Where a prompt says more
    than its labels (a caption), it is read once as a whole for them, and they get their vectors
    from there, scaled in the same way. Of a question the nouns are read alone, and not the labels:
    they are compared with regions as names are, and its answer does not depend on what is to be
    found beside it. What is read from left to right is read as a whole.

    A word that is masked in training is masked in its phrase: the rest of the phrase and, after
    fusion, the image are left to tell it.
    """

    # Questions are to say what their nouns are.
    reads_nouns_alone = True

    @configurable
    def __init__(
        self, *, bert: BertModel, freeze: bool, checkpoint_excluded: Sequence[str] = ()
    ) -> None:
        super().__init__(bert=bert, freeze=freeze, checkpoint_excluded=checkpoint_excluded)
        self._phrase_cache = PhraseCache(_CACHED_PHRASES)

    def forward(self, tokens: TokenBatch) -> TextFeatures:
        """(N, T) tokens -> (N, T, D) float32 features."""
        if tokens.causal:
            return super().forward(tokens)
        hidden, is_alone = self._phrase_features(tokens)
        in_context = torch.tensor(
            [prompt.is_question or says_more_than_labels(prompt) for prompt in tokens.prompts]
        )
        if in_context.any():
            rows = in_context.nonzero().squeeze(1).to(hidden.device)
            context = _unit_variance(self.encode(tokens.input_ids[rows], tokens.mask[rows]))
            context = context.to(hidden.dtype)
            hidden = hidden.index_copy(
                0, rows, torch.where(is_alone[rows, :, None], hidden[rows], context)
            )
        return TextFeatures(hidden, tokens.mask)

    def read_on(
        self, input_ids: Tensor, past: Sequence[KVCache] | None = None
    ) -> tuple[Tensor, list[KVCache]]:
        hidden, past = super().read_on(input_ids, past)
        return _unit_variance(hidden.float()), past

    def _phrase_features(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """The phrases' vectors on their tokens (N, T, D), and which tokens these are (N, T)."""
        device = tokens.input_ids.device
        num_prompts, num_tokens = tokens.input_ids.shape
        phrases, phrase_index, token_index = _phrases_of(tokens.to("cpu"))
        token_index = token_index.to(device)
        phrases_per_token = token_index.bincount(minlength=num_prompts * num_tokens)
        hidden = torch.zeros(num_prompts * num_tokens, self.width, device=device)
        if phrases:
            vectors = self.phrase_vectors(phrases, special_ids=_special_ids(tokens)).float()
            hidden = hidden.index_add(0, token_index, vectors[phrase_index.to(device)])
            hidden = hidden / phrases_per_token.clamp(min=1)[:, None]
        return (
            hidden.view(num_prompts, num_tokens, self.width),
            phrases_per_token.view(num_prompts, num_tokens) > 0,
        )

    def phrase_vectors(
        self, phrases: Sequence[PhraseIds], *, special_ids: tuple[int, int]
    ) -> Tensor:
        """(P, D) vectors of length sqrt(D).

        Args:
            phrases: P lists of token ids; () gives the vector of the empty text.
            special_ids: the ids of [CLS] and [SEP].
        """

        def encode(different: Sequence[PhraseIds]) -> Tensor:
            parts = [
                self._encode_phrases(different[start : start + _PHRASES_PER_BATCH], special_ids)
                for start in range(0, len(different), _PHRASES_PER_BATCH)
            ]
            return torch.cat(parts)

        if self.freeze:
            # In full precision, so that what is kept does not depend on who asked first.
            with torch.autocast(self.bert.device.type, enabled=False):
                version = weights_version(self.bert)
                return self._phrase_cache(phrases, encode, version, self.bert.device)
        different = list(dict.fromkeys(phrases))
        row_of = {phrase: row for row, phrase in enumerate(different)}
        return encode(different)[[row_of[phrase] for phrase in phrases]]

    def _encode_phrases(self, phrases: Sequence[PhraseIds], special_ids: tuple[int, int]) -> Tensor:
        cls, sep = special_ids
        rows = [torch.tensor([cls, *phrase, sep]) for phrase in phrases]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        device = self.bert.device
        input_ids, mask = input_ids.to(device), mask.to(device)
        hidden = self.encode(input_ids, mask) * mask[..., None]
        return _unit_variance(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def says_more_than_labels(prompt: Prompt) -> bool:
    """Whether there is a letter or digit outside the spans of the labels.

    >>> says_more_than_labels(Prompt("cat. dog", (((0, 3),), ((5, 8),)), (0, 1)))
    False
    >>> says_more_than_labels(Prompt("a cat", (((2, 5),),), (0,)))
    True
    """
    end_of_last = 0
    outside = []
    for start, end in sorted(itertools.chain.from_iterable(prompt.spans)):
        outside.append(prompt.text[end_of_last:start])
        end_of_last = max(end_of_last, end)
    outside.append(prompt.text[end_of_last:])
    return any(character.isalnum() for character in "".join(outside))


def _phrases_of(tokens: TokenBatch) -> tuple[list[PhraseIds], Tensor, Tensor]:
    """The token ids of each label or, in questions, each noun, and where its vector belongs.

    Returns:
        P phrases of all prompts in turn; and for each pair of a phrase and a token of it the index
        of the phrase and the index of the token among the N * T of the batch.
    """
    num_tokens = tokens.input_ids.shape[1]
    phrases: list[PhraseIds] = []
    phrase_index, token_index = [], []
    for row, (input_ids, prompt) in enumerate(zip(tokens.input_ids, tokens.prompts, strict=True)):
        maps = tokens.noun_maps if prompt.is_question else tokens.positive_maps
        own_phrases, positions = maps[row].nonzero(as_tuple=True)
        phrase_index.append(own_phrases + len(phrases))
        token_index.append(positions + row * num_tokens)
        ids = iter(input_ids[positions].tolist())
        lengths = maps[row].sum(dim=1).tolist()
        phrases += [tuple(itertools.islice(ids, length)) for length in lengths]
    return phrases, torch.cat(phrase_index), torch.cat(token_index)


def _special_ids(tokens: TokenBatch) -> tuple[int, int]:
    """The ids of [CLS] and [SEP], which begin and end every prompt."""
    last = int(tokens.mask[0].sum()) - 1
    return int(tokens.input_ids[0, 0]), int(tokens.input_ids[0, last])


def _unit_variance(vectors: Tensor) -> Tensor:
    """(..., D) vectors scaled to length sqrt(D), so that their squared entries average 1."""
    return F.normalize(vectors, dim=-1) * math.sqrt(vectors.shape[-1])
