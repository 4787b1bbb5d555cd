"""Positive maps, as the reference's, and scores of labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding

from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import Span
from glipv2_d2.text import (
    Tokenizer,
    caption_prompt,
    class_prompt,
    demo_prompt,
    label_scores,
    positive_map,
    resolve_model,
)

TRANSFORMERS_TOKENIZER = AutoTokenizer.from_pretrained(resolve_model("bert-base-uncased"))


def normalised(positive_map: Tensor) -> Tensor:
    """The reference's rows, which sum to (almost) one."""
    rows = positive_map.float()
    return rows / (rows.sum(dim=1, keepdim=True) + 1e-6)


def map_of(prompt: Prompt, tokenizer: Tokenizer) -> Tensor:
    return tokenizer([prompt]).positive_maps[0]


# The reference's numbers


@pytest.mark.parametrize("case", [0, 1])
def test_positive_map_of_spans_equals_the_references(case, golden, tokenizer):
    expected = golden["spans"][case]
    tokens = tokenizer([caption_prompt(expected["caption"], expected["spans"])])
    (positive_map,) = tokens.positive_maps
    assert tokens.input_ids[0].tolist() == expected["input_ids"]
    assert [row.nonzero()[:, 0].tolist() for row in positive_map] == expected["nonzero"]
    for row, tokens_of_label, values in zip(
        normalised(positive_map), expected["nonzero"], expected["values"], strict=True
    ):
        assert row[tokens_of_label].tolist() == values


@pytest.mark.parametrize("kind", ["free", "list"])
def test_positive_map_of_the_demo_equals_the_references(
    kind, golden_model, golden_arrays, tokenizer
):
    expected = torch.from_numpy(golden_arrays[f"demo/{kind}_positive_map"])
    if kind == "free":
        demo = golden_model["demo_free"]
        prompt = caption_prompt(demo["caption"], demo["spans"])
    else:
        prompt = demo_prompt(golden_model["categories"])
    positive_map = map_of(prompt, tokenizer)
    num_tokens = positive_map.shape[1]
    assert torch.equal(positive_map, expected[:, :num_tokens] > 0)
    assert torch.equal(normalised(positive_map), expected[:, :num_tokens])
    assert not expected[:, num_tokens:].any()


def test_spans_of_a_plain_detection_caption_are_whole_names(golden, tokenizer):
    """Boxes of (traffic light, cat, traffic light): the reference's spans name whole words."""
    expected = golden["od_simple"]
    prompt = caption_prompt(expected["caption"], expected["tokens_positive"])
    positive_map = map_of(prompt, tokenizer)
    # [CLS] cat . traffic light . dog [SEP]; the span of "cat " ends in a blank.
    assert [row.nonzero()[:, 0].tolist() for row in positive_map] == [[3, 4], [1], [3, 4]]


def test_label_of_each_token_in_training_equals_the_references(golden, tokenizer):
    expected = golden["od_optimized_seed3"]
    spans = [[span] for span in expected["label_to_positions"].values()]
    positive_map = map_of(caption_prompt(expected["caption"], spans), tokenizer)
    classes = torch.tensor([int(label) for label in expected["label_to_positions"]])
    labels = torch.where(
        positive_map.any(dim=0), classes[positive_map.byte().argmax(dim=0)], torch.tensor(-1)
    )
    num_tokens = positive_map.shape[1]
    assert labels.tolist() == expected["positive_map_for_od_labels"][:num_tokens]


# Any text


@pytest.mark.parametrize(
    ("text", "span", "pieces"),
    [
        ("a café there", (2, 6), ["cafe"]),
        ("a cafe\u0301 there", (2, 7), ["cafe"]),  # a combining accent
        ("日本 cat", (0, 2), ["日", "本"]),
        ("日本 cat", (3, 6), ["cat"]),
        ("🦊 fox", (2, 5), ["fox"]),
        ("t-shirt", (2, 7), ["shirt"]),
        ("giraffe", (0, 2), ["gi"]),  # part of a word: the wordpieces it overlaps
        ("giraffe", (1, 7), ["gi", "##raf", "##fe"]),
        ("\u200b\u200b\u200b\u200bcat", (0, 7), ["cat"]),  # the reference skips at most two
        ("cat" + " " * 5, (0, 8), ["cat"]),
    ],
)
def test_spans_count_characters_of_the_original_text(text, span, pieces, tokenizer):
    tokens = tokenizer([caption_prompt(text, [[span]])])
    ids = tokens.input_ids[0][tokens.positive_maps[0][0]]
    assert TRANSFORMERS_TOKENIZER.convert_ids_to_tokens(ids.tolist()) == pieces


def test_a_span_of_blanks_has_no_tokens(tokenizer):
    assert not map_of(caption_prompt("a   cat", [[(1, 4)]]), tokenizer).any()


def test_special_tokens_and_padding_have_no_label():
    result = positive_map([[(0, 3)]], [(0, 0), (0, 3), (0, 0)], num_tokens=6)
    assert result.tolist() == [[False, True, False, False, False, False]]


def test_the_map_without_labels_is_empty():
    assert positive_map([], [(0, 0), (0, 3), (0, 0)], num_tokens=3).shape == (0, 3)


def tokens_by_the_references_rule(encoding: BatchEncoding, span: Span) -> list[int] | None:
    """At most two characters are skipped at each end; None if that is not enough."""
    start, end = span

    def first_token(characters: list[int]) -> int | None:
        found = (encoding.char_to_token(c) for c in characters if c >= 0)
        return next((token for token in found if token is not None), None)

    first = first_token([start, start + 1, start + 2])
    last = first_token([end - 1, end - 2, end - 3])
    # Here a last character of several tokens (a Hangul syllable) has all of them.
    offsets = encoding["offset_mapping"]
    while last is not None and last + 1 < len(offsets) and offsets[last + 1] == offsets[last]:
        last += 1
    return None if first is None or last is None else list(range(first, last + 1))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | st.text(
    "ab Zé日한ß-.,\u0301\u200b🦊\t", min_size=1, max_size=30
)


@settings(max_examples=300, deadline=None)
@given(text=texts, data=st.data())
def test_every_span_has_the_tokens_of_the_references_rule(text, data, tokenizer):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    encoding = TRANSFORMERS_TOKENIZER(text, return_offsets_mapping=True)
    expected = tokens_by_the_references_rule(encoding, (start, end))
    (row,) = map_of(Prompt(text, (((start, end),),), (0,)), tokenizer)
    if expected is not None:
        assert row.nonzero()[:, 0].tolist() == expected


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_characters_to_tokens_and_back(text, tokenizer):
    """A label with the characters of a token has that token."""
    offsets = TRANSFORMERS_TOKENIZER(text, return_offsets_mapping=True)["offset_mapping"]
    tokens = [i for i, (start, end) in enumerate(offsets) if start < end]
    # Characters of several tokens (Hangul) are tested above.
    tokens = [i for i in tokens if offsets.count(offsets[i]) == 1]
    spans = [[offsets[i]] for i in tokens]
    result = positive_map(spans, offsets, len(offsets))
    assert [row.nonzero()[:, 0].tolist() for row in result] == [[i] for i in tokens]


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.text("abcdefgh ", min_size=1).filter(str.strip), min_size=1, max_size=8))
def test_no_token_has_two_labels(names, tokenizer):
    result = map_of(class_prompt(names), tokenizer)
    assert result.any(dim=1).all()
    assert result.sum(dim=0).max() <= 1


# Scores


POSITIVE_MAP = torch.tensor(
    [[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]],
    dtype=torch.bool,
)
TOKEN_PROBS = torch.tensor([0.9, 0.5, 0.7, 0.2, 0.8, 0.6])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("mean", [0.5, 0.5, 0.0, 0.5]),
        ("max", [0.5, 0.8, 0.0, 0.8]),
        ("power", [0.5, 0.4, 0.0, 0.08 ** (1 / 3)]),
    ],
)
def test_scores_of_labels(aggregation, expected):
    scores = label_scores(TOKEN_PROBS, POSITIVE_MAP, aggregation)
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_the_mean_is_the_default():
    assert torch.equal(
        label_scores(TOKEN_PROBS, POSITIVE_MAP), label_scores(TOKEN_PROBS, POSITIVE_MAP, "mean")
    )


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_a_label_without_tokens_is_never_detected(aggregation, golden):
    """As in the reference, whose second label has no token and no detection."""
    assert golden["label_without_tokens"] == "ok, labels [1]"
    scores = label_scores(torch.ones(6), POSITIVE_MAP, aggregation)
    assert scores.tolist() == pytest.approx([1.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_leading_dimensions_are_kept(aggregation, shape):
    probs = torch.rand(*shape, 6)
    scores = label_scores(probs, POSITIVE_MAP, aggregation)
    assert scores.shape == (*shape, 4)
    assert label_scores(probs, POSITIVE_MAP[:0], aggregation).shape == (*shape, 0)


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), labels=st.integers(1, 6), num_tokens=st.integers(1, 9))
def test_scores_equal_those_of_single_labels(aggregation, seed, labels, num_tokens):
    generator = np.random.default_rng(seed)
    probs = torch.from_numpy(generator.uniform(size=(4, num_tokens)).astype(np.float32))
    positive_map = torch.from_numpy(generator.uniform(size=(labels, num_tokens)) < 0.5)
    one_label = {
        "mean": lambda p: p.mean(dim=1),
        "max": lambda p: p.amax(dim=1),
        "power": lambda p: p.prod(dim=1) ** (1 / p.shape[1]),
    }[aggregation]
    expected = torch.stack(
        [one_label(probs[:, row]) if row.any() else torch.zeros(4) for row in positive_map], dim=1
    )
    scores = label_scores(probs, positive_map, aggregation)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_a_probability_of_zero_gives_no_nan(aggregation):
    scores = label_scores(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0]), POSITIVE_MAP, aggregation)
    expected = {"mean": [0, 0.5, 0, 1 / 3], "max": [0, 1, 0, 1], "power": [0, 0, 0, 0]}[aggregation]
    torch.testing.assert_close(scores, torch.tensor(expected).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_scores_are_float32_under_autocast(aggregation):
    probs = torch.rand(7, 6)
    expected = label_scores(probs, POSITIVE_MAP, aggregation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = label_scores(probs, POSITIVE_MAP, aggregation)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)


def test_half_precision_probabilities_are_averaged_in_float32():
    probs = TOKEN_PROBS.bfloat16()
    scores = label_scores(probs, POSITIVE_MAP)
    assert torch.equal(scores, label_scores(probs.float(), POSITIVE_MAP))


def test_an_unknown_aggregation_is_rejected():
    with pytest.raises(ValueError, match="'median'.*mean, max, power"):
        label_scores(TOKEN_PROBS, POSITIVE_MAP, "median")
