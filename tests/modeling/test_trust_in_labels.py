"""Whatever is asked, a detection's class is the index of the name that it was scored for."""

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
from glipv2_d2.modeling.name_scores import best_scores
from glipv2_d2.text import Tokenizer
from glipv2_d2.text.prompts import clean_name, normalized_name

TOKENIZER = Tokenizer()
# No clock decides: neither how long an example takes, nor how long it takes to make one up.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

# Names that contain each other, that end or begin alike, in other scripts, with signs.
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


def is_askable(name: str) -> bool:
    cleaned = clean_name(name)
    return bool(cleaned.replace(".", "").strip()) and 0 < TOKENIZER.count(cleaned) <= 16


some_names = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(LVIS),
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=3).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
).filter(is_askable)
name_lists = st.lists(some_names, min_size=1, max_size=25)
limits = st.fixed_dictionaries(
    {"max_classes": st.integers(0, 7), "max_tokens": st.sampled_from([18, 24, 60, 256])}
)


def many_names(count: int, seed: int) -> list[str]:
    """A list with a few duplicates, and names of words that others have, too."""
    rng = random.Random(seed)
    readable = [word for word in WORDS if is_askable(word)]
    made = [" ".join(rng.sample(readable, 2)) for _ in range(count)]
    return rng.choices(made + LVIS, k=count)


def ask(model: GLIPv2, lists: Sequence[Sequence[str]], **fields: Any) -> list[dict[int, float]]:
    """What a batch of images, each with a list of its own, gives per class."""
    inputs = [
        {"image": image_number(i), "classes": list(names), **fields}
        for i, names in enumerate(lists)
    ]
    with torch.no_grad():
        return [scores_of_classes(result["instances"]) for result in model(inputs)]


def truth(names: Sequence[str], image: int = 0) -> dict[int, float]:
    return {i: known_score(TOKENIZER, names[i], image) for i in first_indices(names)}


def assert_same(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, **UNTIMED)
@given(lists=st.lists(name_lists, min_size=1, max_size=4), limit=limits)
def test_every_detection_has_the_index_of_its_name(
    lists: list[list[str]], limit: dict[str, int]
) -> None:
    found = ask(known_model(TOKENIZER, **limit), lists)
    for image, (names, of_image) in enumerate(zip(lists, found, strict=True)):
        assert_same(of_image, truth(names, image))


@settings(max_examples=5, **UNTIMED)
@given(count=st.integers(1, 2000), seed=st.integers(0, 99), max_classes=st.sampled_from([0, 1, 40]))
def test_every_detection_of_a_long_list_has_the_index_of_its_name(
    count: int, seed: int, max_classes: int
) -> None:
    names = many_names(count, seed)
    assert_same(*ask(known_model(TOKENIZER, max_classes=max_classes), [names]), truth(names))


def test_two_thousand_names_of_which_many_repeat_keep_their_first_index() -> None:
    names = many_names(1000, seed=0)
    names += [name.upper().replace(" ", "_") for name in names]
    assert len(names) == 2000
    (found,) = ask(known_model(TOKENIZER, max_classes=64), [names])
    assert max(found) < 1000
    assert_same(found, truth(names))


@settings(max_examples=30, **UNTIMED)
@given(names=name_lists, data=st.data(), limit=limits)
def test_a_permutation_of_the_list_permutes_the_classes(
    names: list[str], data: st.DataObject, limit: dict[str, int]
) -> None:
    names = [names[i] for i in first_indices(names)]
    order = data.draw(st.permutations(range(len(names))))
    model = known_model(TOKENIZER, **limit)
    (found,) = ask(model, [names])
    (permuted,) = ask(model, [[names[i] for i in order]])
    assert_same({order[i]: score for i, score in permuted.items()}, found)


@settings(max_examples=50, **UNTIMED)
@given(
    names=st.lists(some_names, min_size=2, max_size=15, unique_by=normalized_name),
    num_negatives=st.integers(1, 6),
    limit=limits,
)
def test_a_class_is_found_unless_a_negative_scores_higher(
    names: list[str], num_negatives: int, limit: dict[str, int]
) -> None:
    negatives = names[: min(num_negatives, len(names) - 1)]
    classes = names[len(negatives) :]
    limit = {"max_classes": limit["max_classes"] and limit["max_classes"] + 6, "max_tokens": 256}
    (found,) = ask(known_model(TOKENIZER, **limit), [classes], negatives=negatives)
    to_beat = max(known_score(TOKENIZER, name) for name in negatives)
    expected = truth(classes)
    # Names of letters that the tokenizer does not know read alike: rounding decides between them.
    assume(all(abs(score - to_beat) > 1e-5 for score in expected.values()))
    assert_same(found, {i: s for i, s in expected.items() if s > to_beat})


@settings(max_examples=30, **UNTIMED)
@given(names=name_lists, limit=limits)
def test_the_best_score_of_a_name_is_that_of_its_detection(
    names: list[str], limit: dict[str, int]
) -> None:
    model = known_model(TOKENIZER, **limit)
    inputs = [{"image": image_number(i), "classes": names} for i in range(2)]
    for image, scores in enumerate(best_scores(model, inputs)):
        first = {normalized_name(names[i]): s for i, s in truth(names, image).items()}
        expected = [first[normalized_name(name)] for name in names]
        torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)


# Several orders of the names.


def scores_by_place(ids: Tensor, image: int) -> Tensor:
    """What a word scores depends on where it stands, as in a model whose words read each other."""
    places = torch.arange(len(ids))
    return (word_scores(ids + 31 * places, image) * 7) % 0.9 + 0.05


@settings(max_examples=30, **UNTIMED)
@given(
    names=st.lists(some_names, min_size=1, max_size=12, unique_by=normalized_name),
    data=st.data(),
    num_orders=st.integers(1, 5),
    limit=limits,
)
def test_with_orders_of_its_own_the_callers_order_moves_no_score(
    names: list[str], data: st.DataObject, num_orders: int, limit: dict[str, int]
) -> None:
    model = known_model(TOKENIZER, **limit, num_orders=num_orders, score_of_token=scores_by_place)
    order = data.draw(st.permutations(range(len(names))))
    (found,) = ask(model, [names])
    (permuted,) = ask(model, [[names[i] for i in order]])
    assert_same({order[i]: score for i, score in permuted.items()}, found)


@settings(max_examples=30, **UNTIMED)
@given(lists=st.lists(name_lists, min_size=1, max_size=3), num_orders=st.integers(1, 4))
def test_every_order_keeps_the_index_of_the_name(lists: list[list[str]], num_orders: int) -> None:
    found = ask(known_model(TOKENIZER, num_orders=num_orders), lists)
    for image, (names, of_image) in enumerate(zip(lists, found, strict=True)):
        assert_same(of_image, truth(names, image))


def test_a_score_is_the_mean_over_all_orders_of_two_names() -> None:
    names = ["red car", "dog"]
    model = known_model(TOKENIZER, num_orders=7, score_of_token=scores_by_place)
    (found,) = ask(model, [names])
    sums = {"red car": 0.0, "dog": 0.0}
    for text, places in (("red car. dog", [(1, 3), (4, 5)]), ("dog. red car", [(3, 5), (1, 2)])):
        (ids,) = TOKENIZER.pieces([text])
        scores = scores_by_place(torch.tensor([101, *ids, 102]), 0)
        for name, (start, end) in zip(names, places, strict=True):
            sums[name] += scores[start:end].mean().item()
    expected = {i: (sums[name] / 2 * CENTERNESS) ** 0.5 for i, name in enumerate(names)}
    assert_same(found, expected)


def test_averaging_asks_no_more_orders_than_there_are() -> None:
    model = known_model(TOKENIZER, num_orders=5, cache_size=0)
    ask(model, [["dog"], ["cat", "dog"], ["cat", "dog", "cow", "hen"]])
    assert model.language_backbone.asked == 1 + 2 + 5


@pytest.mark.parametrize("num_orders", [0, 1])
def test_without_averaging_every_prompt_is_asked_once(num_orders: int) -> None:
    model = known_model(TOKENIZER, num_orders=num_orders, cache_size=0)
    ask(model, [["cat", "dog", "cow"]])
    assert model.language_backbone.asked == 1


def test_negatives_compete_in_every_order() -> None:
    names, negatives = ["cat", "dog", "cow"], ["hen", "horse"]
    model = known_model(TOKENIZER, num_orders=3)
    (found,) = ask(model, [names], negatives=negatives)
    to_beat = max(known_score(TOKENIZER, name) for name in negatives)
    assert_same(found, {i: s for i, s in truth(names).items() if s >= to_beat})
