"""Threads that share a model get the results of separate calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import random_image, tiny_model
from helpers.word_scores import image_number, known_model, known_score, scores_of_classes

from glipv2_d2.text import Tokenizer


@pytest.fixture(autouse=True)
def eager_switching(monkeypatch) -> Iterator[None]:
    """Threads switch as often as possible, and the prompt cache holds two lists of names."""
    monkeypatch.setattr("glipv2_d2.modeling.prompt_builder.MAX_CACHED_LISTS", 2)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_every_thread_gets_the_scores_of_its_own_class_names() -> None:
    tokenizer = Tokenizer()
    model = known_model(tokenizer, max_classes=2, cache_size=2)
    words = ["cat", "hot dog", "red car", "sea lion", "bat", "bowl", "café"]

    def is_right(turn: int) -> bool:
        names = [words[(turn + k) % len(words)] for k in range(1 + turn % 4)]
        with torch.no_grad():
            (result,) = model([{"image": image_number(turn % 5), "classes": names}])
        expected = {i: known_score(tokenizer, name, turn % 5) for i, name in enumerate(names)}
        return scores_of_classes(result["instances"]) == pytest.approx(expected, abs=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(200)))


@pytest.mark.parametrize("language_backbone", ["BertLanguageBackbone", "PhraseLanguageBackbone"])
def test_a_model_gives_threads_the_same_detections_as_one_thread(language_backbone: str) -> None:
    model = tiny_model(
        *("MODEL.LANGUAGE_BACKBONE.NAME", language_backbone),
        *("MODEL.LANGUAGE_BACKBONE.FREEZE", True, "MODEL.LANGUAGE_BACKBONE.CACHE_SIZE", 1),
        *("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.PROMPT.MAX_CLASSES", 2),
    )
    lists = [["cat", "dog"], ["hot dog", "cat", "bat"], ["red car"], ["bat", "red car", "dog"]]

    def predict(turn: int) -> torch.Tensor:
        size = (64, 64) if turn % 2 else (64, 96)
        x = {"image": random_image(*size, seed=turn % 3), "classes": lists[turn % len(lists)]}
        with torch.no_grad():
            found = model([x])[0]["instances"]
        return torch.cat([found.pred_boxes.tensor, found.scores[:, None]], dim=1)

    expected = [predict(turn) for turn in range(12)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(predict, range(24)))
    for turn, result in enumerate(results):
        torch.testing.assert_close(result, expected[turn % 12], atol=1e-4, rtol=0)
