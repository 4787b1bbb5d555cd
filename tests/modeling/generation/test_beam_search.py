"""Beam search with a toy model model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glipv2_d2.modeling.generation.beam_search import beam_search, check_beam_size
from glipv2_d2.structures import GenerationConfig

BEGIN, END = 0, 1
TOKENS = (3, 4, 5)
VOCAB_SIZE = 16
SPECIAL_IDS = sorted(set(range(VOCAB_SIZE)) - {END, *TOKENS})
CPU = torch.device("cpu")


class ToyLanguageModel:
    """Random logits of the next token, which depend on all earlier tokens and on the image.

    It stores the sequences so far, as a decoder does, so that a wrong order of beams is detected.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sequences: list[tuple[int, tuple[int, ...]]] = []
        self.num_decoded = 0

    def log_probs(self, image: int, tokens: tuple[int, ...]) -> Tensor:
        seed = hash((self.seed, image, tokens)) % 2**31
        logits = 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
        return logits.double().log_softmax(0)

    def decode(self, input_ids: Tensor) -> Tensor:
        self.num_decoded += input_ids.shape[1]
        sequences = self.sequences or [(image, ()) for image in range(len(input_ids))]
        self.sequences = [
            (image, tokens + tuple(ids))
            for (image, tokens), ids in zip(sequences, input_ids.tolist(), strict=True)
        ]
        return torch.stack([self.log_probs(*sequence) for sequence in self.sequences])

    def reorder(self, rows: Tensor) -> None:
        self.sequences = [self.sequences[row] for row in rows.tolist()]

    def score(self, image: int, sequence: list[int], penalty: float, num_given: int = 0) -> float:
        """The log-probability of a sequence and its end, scaled by its length."""
        tokens, total = (BEGIN, *sequence[:num_given]), 0.0
        for token in [*sequence[num_given:], END]:
            total += self.log_probs(image, tokens)[token].item()
            tokens = (*tokens, token)
        return total / (len(sequence) - num_given + 1) ** penalty


def search(
    model: ToyLanguageModel, generation: GenerationConfig, batch_size: int = 2, given: tuple = ()
):
    return beam_search(
        model.decode,
        model.reorder,
        begin=[BEGIN, *given],
        batch_size=batch_size,
        end_id=END,
        forbidden_ids=[*SPECIAL_IDS, END],
        generation=generation,
        device=CPU,
    )


def all_sequences(shortest: int, longest: int) -> list[list[int]]:
    lengths = range(shortest, longest + 1)
    return [list(tokens) for n in lengths for tokens in itertools.product(TOKENS, repeat=n)]


@given(st.integers(0, 10**6), st.integers(1, 2), st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=30, deadline=None)
def test_beams_for_every_sequence_find_the_best_of_all(
    seed: int, min_length: int, penalty: float
) -> None:
    """Three sequences of one token and nine of two are twelve beams."""
    generation = GenerationConfig(
        beam_size=12, min_length=min_length, max_length=2, length_penalty=penalty
    )
    model = ToyLanguageModel(seed)
    for image, sequence in enumerate(search(model, generation)):
        candidates = all_sequences(min_length, 2)
        assert sequence == max(candidates, key=lambda t, i=image: model.score(i, t, penalty))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_single_token_is_the_best_of_all(seed: int) -> None:
    model = ToyLanguageModel(seed)
    found = search(model, GenerationConfig(beam_size=4, max_length=1))
    for image, sequence in enumerate(found):
        assert sequence == max(all_sequences(1, 1), key=lambda t, i=image: model.score(i, t, 1.0))


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_one_beam_takes_the_likeliest_token_of_every_step(seed: int, min_length: int) -> None:
    model = ToyLanguageModel(seed)
    generation = GenerationConfig(beam_size=1, min_length=min_length, max_length=4)
    for image, sequence in enumerate(search(model, generation)):
        expected: list[int] = []
        while len(expected) < 4:
            scores = model.log_probs(image, (BEGIN, *expected))
            scores[SPECIAL_IDS] = -math.inf
            if len(expected) < min_length:
                scores[END] = -math.inf
            if scores.argmax() == END:
                break
            expected.append(int(scores.argmax()))
        assert sequence == expected


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_lengths_are_within_the_limits_and_special_tokens_never_generated(
    seed: int, min_length: int, more: int, beam_size: int
) -> None:
    generation = GenerationConfig(
        beam_size=beam_size, min_length=min_length, max_length=min_length + more - 1
    )
    for sequence in search(ToyLanguageModel(seed), generation, batch_size=3):
        assert generation.min_length <= len(sequence) <= generation.max_length
        assert set(sequence) <= set(TOKENS)


def test_sequences_of_a_batch_equal_those_of_separate_searches() -> None:
    generation = GenerationConfig(beam_size=3, max_length=4)
    together = search(ToyLanguageModel(5), generation, batch_size=3)

    class OneImage(ToyLanguageModel):
        def log_probs(self, image: int, tokens: tuple[int, ...]) -> Tensor:
            return super().log_probs(self.image, tokens)

    for image, sequence in enumerate(together):
        alone = OneImage(5)
        alone.image = image
        assert search(alone, generation, batch_size=1) == [sequence]


def test_a_prefix_counts_for_the_length_but_not_for_the_score() -> None:
    generation = GenerationConfig(beam_size=6, min_length=3, max_length=3, prefix="x y")
    model = ToyLanguageModel(1)
    (sequence,) = search(model, generation, batch_size=1, given=(3, 4))
    assert sequence[:2] == [3, 4]
    candidates = [[3, 4, token] for token in TOKENS]
    assert sequence == max(candidates, key=lambda t: model.score(0, t, 1.0, num_given=2))


def test_every_token_is_decoded_once() -> None:
    model = ToyLanguageModel(2)
    (sequence,) = search(
        model, GenerationConfig(beam_size=1, min_length=4, max_length=4), batch_size=1
    )
    assert model.num_decoded == len([BEGIN, *sequence])


def test_a_very_likely_sequence_is_found_although_others_end_earlier() -> None:
    """Less likely sequences end at every step before; they must not end the search."""

    class Confident(ToyLanguageModel):
        def log_probs(self, image: int, tokens: tuple[int, ...]) -> Tensor:
            probs = torch.full((VOCAB_SIZE,), 1e-6, dtype=torch.double)
            target = (BEGIN, 3, 4, 3, 5, 4, END)
            likely = target[len(tokens)] if tokens == target[: len(tokens)] else 3
            probs[END] = 1e-3
            probs[likely] = 0.99
            return probs.log()

    for beam_size in (1, 2, 3, 5):
        generation = GenerationConfig(beam_size=beam_size, max_length=9)
        assert search(Confident(0), generation, batch_size=2) == [[3, 4, 3, 5, 4]] * 2


def test_a_length_penalty_decides_between_short_and_long() -> None:
    class TwoSequences(ToyLanguageModel):
        """Token 3 comes first; then the end with 0.6, or token 4 and the end with 0.4."""

        def log_probs(self, image: int, tokens: tuple[int, ...]) -> Tensor:
            probs = torch.full((VOCAB_SIZE,), 1e-9, dtype=torch.double)
            if len(tokens) == 1:
                probs[3] = 1
            elif len(tokens) == 2:
                probs[END], probs[4] = 0.6, 0.4
            else:
                probs[END] = 1
            return probs.log()

    def length(penalty: float) -> int:
        generation = GenerationConfig(beam_size=2, max_length=3, length_penalty=penalty)
        return len(search(TwoSequences(0), generation, batch_size=1)[0])

    # log 0.6 / 2 is more than log 0.4 / 3, and log 0.6 / 2^4 less than log 0.4 / 3^4.
    assert [length(penalty) for penalty in (0.0, 1.0, 4.0)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"min_length": 0}, "min_length is 0"),
        ({"min_length": 4, "max_length": 3}, "min_length 4 exceeds max_length 3"),
    ],
)
def test_settings_out_of_range_are_an_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beam_size", 2.0), ("max_length", "9"), ("length_penalty", "a"), ("prefix", 3)],
)
def test_settings_of_another_type_are_an_error(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} is {value!r}"):
        GenerationConfig(**{name: value})


def test_more_beams_than_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="beam_size is 17.*only 16 tokens"):
        search(ToyLanguageModel(0), GenerationConfig(beam_size=17))
    check_beam_size(16, 16)


def test_a_prefix_of_the_maximal_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="'x y' has 2 tokens, but max_length is 2"):
        search(
            ToyLanguageModel(0),
            GenerationConfig(beam_size=1, max_length=2, prefix="x y"),
            given=(3, 4),
        )
