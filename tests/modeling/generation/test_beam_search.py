"""Beam search over the tables of a toy language."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glipv2_d2.modeling.generation.beam_search import GenerationConfig, beam_search, check_beam_size

BEGIN, END = 0, 1
WORDS = (3, 4, 5)
VOCAB_SIZE = 16
NEVER_SAID = sorted(set(range(VOCAB_SIZE)) - {END, *WORDS})
CPU = torch.device("cpu")


class ToyLanguage:
    """The next word depends on all words before it and on which text it is, at random.

    It keeps what it has read, as the model does, so that a wrong order of beams shows.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.texts: list[tuple[int, tuple[int, ...]]] = []
        self.tokens_read = 0

    def log_probs(self, image: int, words: tuple[int, ...]) -> Tensor:
        seed = hash((self.seed, image, words)) % 2**31
        logits = 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
        return logits.double().log_softmax(0)

    def read(self, input_ids: Tensor) -> Tensor:
        self.tokens_read += input_ids.shape[1]
        texts = self.texts or [(image, ()) for image in range(len(input_ids))]
        self.texts = [
            (image, words + tuple(ids))
            for (image, words), ids in zip(texts, input_ids.tolist(), strict=True)
        ]
        return torch.stack([self.log_probs(*text) for text in self.texts])

    def reorder(self, rows: Tensor) -> None:
        self.texts = [self.texts[row] for row in rows.tolist()]

    def score(self, image: int, text: list[int], penalty: float, num_given: int = 0) -> float:
        """The log-probability of a text and its end, scaled by its length."""
        words, total = (BEGIN, *text[:num_given]), 0.0
        for word in [*text[num_given:], END]:
            total += self.log_probs(image, words)[word].item()
            words = (*words, word)
        return total / (len(text) - num_given + 1) ** penalty


def search(
    language: ToyLanguage, decoding: GenerationConfig, num_texts: int = 2, given: tuple = ()
):
    return beam_search(
        language.read,
        language.reorder,
        begin=[BEGIN, *given],
        num_texts=num_texts,
        end_id=END,
        forbidden_ids=[*NEVER_SAID, END],
        decoding=decoding,
        device=CPU,
    )


def all_texts(shortest: int, longest: int) -> list[list[int]]:
    lengths = range(shortest, longest + 1)
    return [list(text) for n in lengths for text in itertools.product(WORDS, repeat=n)]


@given(st.integers(0, 10**6), st.integers(1, 2), st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=30, deadline=None)
def test_beams_that_hold_every_text_find_the_best_of_all(
    seed: int, min_length: int, penalty: float
) -> None:
    """Three texts of one word and nine of two are twelve beams."""
    decoding = GenerationConfig(
        beam_size=12, min_length=min_length, max_length=2, length_penalty=penalty
    )
    language = ToyLanguage(seed)
    for image, text in enumerate(search(language, decoding)):
        candidates = all_texts(min_length, 2)
        assert text == max(candidates, key=lambda t, i=image: language.score(i, t, penalty))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_one_word_is_the_best_of_all_words(seed: int) -> None:
    language = ToyLanguage(seed)
    found = search(language, GenerationConfig(beam_size=4, max_length=1))
    for image, text in enumerate(found):
        assert text == max(all_texts(1, 1), key=lambda t, i=image: language.score(i, t, 1.0))


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_one_beam_takes_the_likeliest_word_each_time(seed: int, min_length: int) -> None:
    language = ToyLanguage(seed)
    decoding = GenerationConfig(beam_size=1, min_length=min_length, max_length=4)
    for image, text in enumerate(search(language, decoding)):
        expected: list[int] = []
        while len(expected) < 4:
            scores = language.log_probs(image, (BEGIN, *expected))
            scores[NEVER_SAID] = -math.inf
            if len(expected) < min_length:
                scores[END] = -math.inf
            if scores.argmax() == END:
                break
            expected.append(int(scores.argmax()))
        assert text == expected


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_lengths_are_kept_and_special_tokens_never_written(
    seed: int, min_length: int, more: int, beam_size: int
) -> None:
    decoding = GenerationConfig(
        beam_size=beam_size, min_length=min_length, max_length=min_length + more - 1
    )
    for text in search(ToyLanguage(seed), decoding, num_texts=3):
        assert decoding.min_length <= len(text) <= decoding.max_length
        assert set(text) <= set(WORDS)


def test_texts_that_are_searched_together_are_those_searched_alone() -> None:
    decoding = GenerationConfig(beam_size=3, max_length=4)
    together = search(ToyLanguage(5), decoding, num_texts=3)

    class OneImage(ToyLanguage):
        def log_probs(self, image: int, words: tuple[int, ...]) -> Tensor:
            return super().log_probs(self.image, words)

    for image, text in enumerate(together):
        alone = OneImage(5)
        alone.image = image
        assert search(alone, decoding, num_texts=1) == [text]


def test_a_prefix_is_kept_and_counts_as_length_but_not_as_written() -> None:
    decoding = GenerationConfig(beam_size=6, min_length=3, max_length=3, prefix="x y")
    language = ToyLanguage(1)
    (text,) = search(language, decoding, num_texts=1, given=(3, 4))
    assert text[:2] == [3, 4]
    candidates = [[3, 4, word] for word in WORDS]
    assert text == max(candidates, key=lambda t: language.score(0, t, 1.0, num_given=2))


def test_every_word_is_read_once() -> None:
    language = ToyLanguage(2)
    (text,) = search(
        language, GenerationConfig(beam_size=1, min_length=4, max_length=4), num_texts=1
    )
    assert language.tokens_read == len([BEGIN, *text])


def test_a_text_that_is_nearly_sure_is_found_however_early_others_end() -> None:
    """Worse texts end at every step before it: they must not end the search."""

    class Sure(ToyLanguage):
        def log_probs(self, image: int, words: tuple[int, ...]) -> Tensor:
            probs = torch.full((VOCAB_SIZE,), 1e-6, dtype=torch.double)
            right = (BEGIN, 3, 4, 3, 5, 4, END)
            sure = right[len(words)] if words == right[: len(words)] else 3
            probs[END] = 1e-3
            probs[sure] = 0.99
            return probs.log()

    for beam_size in (1, 2, 3, 5):
        decoding = GenerationConfig(beam_size=beam_size, max_length=9)
        assert search(Sure(0), decoding, num_texts=2) == [[3, 4, 3, 5, 4]] * 2


def test_a_length_penalty_decides_between_short_and_long() -> None:
    class TwoTexts(ToyLanguage):
        """Ends at once with 0.4; or says word 3 twice more with 0.6 in all."""

        def log_probs(self, image: int, words: tuple[int, ...]) -> Tensor:
            probs = torch.full((VOCAB_SIZE,), 1e-9, dtype=torch.double)
            if len(words) == 1:
                probs[3] = 1
            elif len(words) == 2:
                probs[END], probs[4] = 0.6, 0.4
            else:
                probs[END] = 1
            return probs.log()

    def length(penalty: float) -> int:
        decoding = GenerationConfig(beam_size=2, max_length=3, length_penalty=penalty)
        return len(search(TwoTexts(0), decoding, num_texts=1)[0])

    # log 0.6 / 2 is more than log 0.4 / 3, and log 0.6 / 2^4 less than log 0.4 / 3^4.
    assert [length(penalty) for penalty in (0.0, 1.0, 4.0)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam_size": 0}, "beam size is 0"),
        ({"max_length": 0}, "at least one"),
        ({"min_length": 0}, "at least one"),
        ({"min_length": 4, "max_length": 3}, "at least 4 and at most 3"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beam_size", 2.0), ("max_length", "9"), ("length_penalty", "a"), ("prefix", 3)],
)
def test_settings_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} is {value!r}"):
        GenerationConfig(**{name: value})


def test_more_beams_than_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BEAM_SIZE\) is 17.*only 16 words"):
        search(ToyLanguage(0), GenerationConfig(beam_size=17))
    check_beam_size(16, 16)


def test_a_prefix_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="'x y' has 2 tokens, and a caption at most 2"):
        search(
            ToyLanguage(0), GenerationConfig(beam_size=1, max_length=2, prefix="x y"), given=(3, 4)
        )
