"""The class of a detection is the index of the class name that it was scored for.

Checked for random lists of names, chunks, negatives and orders.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from helpers.word_scores import (
    CENTERNESS,
    first_indices,
    image_number,
    known_model,
    known_score,
    scores_of_classes,
    word_scores,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.class_scores import best_class_scores
from glipv2_d2.text import Tokenizer
from glipv2_d2.text.names import clean_name, normalized_name

TOKENIZER = Tokenizer()
# Slow machines are no failure.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

# Names that contain each other, share a beginning or an end, in other scripts, with signs.
WORDS = [
    *("dog", "hot dog", "hot", "dog house", "hot dog stand", "dogs", "Dog", "DOG_", "do", "g"),
    *(
        "bat_(animal)",
        "bat_(sports)",
        "bat",
        "café",
        "cafe",
        "naïve œuvre",
        "Übergröße",
        "犬",
        "犬小屋",
    ),
    *("한국", "جمل", "собака", "🦊", "t-shirt", "rock'n'roll", "a/b", "3.5mm jack", "no. 7", "C++"),
    *("[SEP]", "[unused1]", "##ing", "x" * 30, "New\nline", "tab\tbed", "a  b", "_under_score_"),
]
LVIS = [category["synonyms"][0] for category in LVIS_CATEGORIES]


def is_valid_name(name: str) -> bool:
    ids = token_ids(name)
    has_words = bool(clean_name(name).replace(".", "").strip()) and TOKENIZER.has_words(ids)
    return has_words and len(ids) <= 16


def token_ids(name: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode([clean_name(name)])[0])


names_strategy = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(LVIS),
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=3).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
).filter(is_valid_name)
name_lists = st.lists(names_strategy, min_size=1, max_size=25)
limits = st.fixed_dictionaries(
    {
        "tokenizer": st.sampled_from([Tokenizer(max_tokens=n) for n in (18, 24, 60, 256)]),
        "max_classes": st.integers(0, 7),
    }
)


def many_names(count: int, seed: int) -> list[str]:
    """A list with a few duplicates, and names that share words."""
    rng = random.Random(seed)
    valid = [word for word in WORDS if is_valid_name(word)]
    pairs = [" ".join(rng.sample(valid, 2)) for _ in range(count)]
    return rng.choices(pairs + LVIS, k=count)


def detect(model: GLIPv2, lists: Sequence[Sequence[str]], **fields: Any) -> list[dict[int, float]]:
    """The score of each detected class of a batch of images with one list of names each."""
    inputs = [
        {"image": image_number(i), "classes": list(names), **fields}
        for i, names in enumerate(lists)
    ]
    with torch.no_grad():
        return [scores_of_classes(result["instances"]) for result in model(inputs)]


def expected_scores(names: Sequence[str], image: int = 0) -> dict[int, float]:
    return {i: known_score(TOKENIZER, names[i], image) for i in first_indices(names)}


def assert_same(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, **UNTIMED)
@given(lists=st.lists(name_lists, min_size=1, max_size=4), limit=limits)
def test_detections_have_the_index_of_their_name(
    lists: list[list[str]], limit: dict[str, Any]
) -> None:
    found = detect(known_model(**limit), lists)
    for image, (names, of_image) in enumerate(zip(lists, found, strict=True)):
        assert_same(of_image, expected_scores(names, image))


@settings(max_examples=5, **UNTIMED)
@given(count=st.integers(1, 2000), seed=st.integers(0, 99), max_classes=st.sampled_from([0, 1, 40]))
def test_detections_of_a_long_list_have_the_index_of_their_name(
    count: int, seed: int, max_classes: int
) -> None:
    names = many_names(count, seed)
    assert_same(
        *detect(known_model(TOKENIZER, max_classes=max_classes), [names]), expected_scores(names)
    )


def test_duplicates_in_two_thousand_names_have_their_first_index() -> None:
    names = many_names(1000, seed=0)
    # The upper case of "ß", "SS", is another word.
    names += [name if "ß" in name else name.upper().replace(" ", "_") for name in names]
    assert len(names) == 2000
    (found,) = detect(known_model(TOKENIZER, max_classes=64), [names])
    assert max(found) < 1000
    assert_same(found, expected_scores(names))


@settings(max_examples=30, **UNTIMED)
@given(names=name_lists, data=st.data(), limit=limits)
def test_a_permutation_of_the_list_permutes_the_classes(
    names: list[str], data: st.DataObject, limit: dict[str, Any]
) -> None:
    names = [names[i] for i in first_indices(names)]
    order = data.draw(st.permutations(range(len(names))))
    model = known_model(**limit)
    (found,) = detect(model, [names])
    (permuted,) = detect(model, [[names[i] for i in order]])
    assert_same({order[i]: score for i, score in permuted.items()}, found)


@settings(max_examples=50, **UNTIMED)
@given(
    names=st.lists(names_strategy, min_size=2, max_size=15, unique_by=token_ids),
    num_negatives=st.integers(1, 6),
    limit=limits,
)
def test_a_class_is_detected_unless_a_negative_scores_higher(
    names: list[str], num_negatives: int, limit: dict[str, Any]
) -> None:
    negatives = names[: min(num_negatives, len(names) - 1)]
    classes = names[len(negatives) :]
    max_classes = limit["max_classes"] and limit["max_classes"] + 6
    model = known_model(TOKENIZER, max_classes=max_classes)
    (found,) = detect(model, [classes], negatives=negatives)
    threshold = max(known_score(TOKENIZER, name) for name in negatives)
    expected = expected_scores(classes)
    # Names of unknown characters have equal scores: rounding decides between them.
    assume(all(abs(score - threshold) > 1e-5 for score in expected.values()))
    assert_same(found, {i: s for i, s in expected.items() if s > threshold})


@settings(max_examples=30, **UNTIMED)
@given(names=name_lists, limit=limits)
def test_the_best_score_of_a_name_is_that_of_its_detection(
    names: list[str], limit: dict[str, Any]
) -> None:
    model = known_model(**limit)
    inputs = [{"image": image_number(i), "classes": names} for i in range(2)]
    for image, scores in enumerate(best_class_scores(model, inputs)):
        first = {normalized_name(names[i]): s for i, s in expected_scores(names, image).items()}
        expected = [first[normalized_name(name)] for name in names]
        torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)


# Averages over several orders of the names.


def scores_by_position(ids: Tensor, image: int) -> Tensor:
    """Scores that depend on token and position, as in a model whose tokens attend to each other."""
    positions = torch.arange(len(ids))
    return (word_scores(ids + 31 * positions, image) * 7) % 0.9 + 0.05


@settings(max_examples=30, **UNTIMED)
@given(
    names=st.lists(names_strategy, min_size=1, max_size=12, unique_by=normalized_name),
    data=st.data(),
    num_orders=st.integers(1, 5),
    limit=limits,
)
def test_averaged_scores_do_not_depend_on_the_callers_order(
    names: list[str], data: st.DataObject, num_orders: int, limit: dict[str, Any]
) -> None:
    model = known_model(**limit, num_orders=num_orders, score_of_token=scores_by_position)
    order = data.draw(st.permutations(range(len(names))))
    (found,) = detect(model, [names])
    (permuted,) = detect(model, [[names[i] for i in order]])
    assert_same({order[i]: score for i, score in permuted.items()}, found)


@settings(max_examples=30, **UNTIMED)
@given(lists=st.lists(name_lists, min_size=1, max_size=3), num_orders=st.integers(1, 4))
def test_averaged_detections_have_the_index_of_their_name(
    lists: list[list[str]], num_orders: int
) -> None:
    found = detect(known_model(TOKENIZER, num_orders=num_orders), lists)
    for image, (names, of_image) in enumerate(zip(lists, found, strict=True)):
        assert_same(of_image, expected_scores(names, image))


def test_a_score_is_the_mean_over_all_orders_of_two_names() -> None:
    names = ["red car", "dog"]
    model = known_model(TOKENIZER, num_orders=7, score_of_token=scores_by_position)
    (found,) = detect(model, [names])
    sums = {"red car": 0.0, "dog": 0.0}
    for text, positions in (("red car. dog", [(1, 3), (4, 5)]), ("dog. red car", [(3, 5), (1, 2)])):
        (ids,) = TOKENIZER.encode([text])
        scores = scores_by_position(torch.tensor([101, *ids, 102]), 0)
        for name, (start, end) in zip(names, positions, strict=True):
            sums[name] += scores[start:end].mean().item()
    expected = {i: (sums[name] / 2 * CENTERNESS) ** 0.5 for i, name in enumerate(names)}
    assert_same(found, expected)


def test_no_more_orders_are_encoded_than_exist() -> None:
    model = known_model(TOKENIZER, num_orders=5, cache_size=0)
    detect(model, [["dog"], ["cat", "dog"], ["cat", "dog", "cow", "hen"]])
    assert model.language_backbone.num_encoded == 1 + 2 + 5


@pytest.mark.parametrize("num_orders", [0, 1])
def test_without_averaging_every_prompt_is_encoded_once(num_orders: int) -> None:
    model = known_model(TOKENIZER, num_orders=num_orders, cache_size=0)
    detect(model, [["cat", "dog", "cow"]])
    assert model.language_backbone.num_encoded == 1


def test_negatives_compete_in_every_order() -> None:
    names, negatives = ["cat", "dog", "cow"], ["hen", "horse"]
    model = known_model(TOKENIZER, num_orders=3)
    (found,) = detect(model, [names], negatives=negatives)
    threshold = max(known_score(TOKENIZER, name) for name in negatives)
    assert_same(found, {i: s for i, s in expected_scores(names).items() if s >= threshold})
