"""Errors of a model that is built from a config name the keys of the arguments."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.models import tiny_cfg, tiny_model
from helpers.text_tasks import TEXT_TASKS
from helpers.two_stage import two_stage_model

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.queries import QueryBuilder


@pytest.mark.parametrize(
    ("key", "value", "argument"),
    [
        ("MODEL.ANSWER.GROUNDING", "guess", "answer_grounding is 'guess'"),
        ("MODEL.PROMPT.NUM_ORDERS", -1, "num_orders is -1"),
        ("MODEL.PROMPT.MAX_TOKENS", 2, "max_tokens is 2"),
        ("MODEL.LANGUAGE_BACKBONE.CACHE_SIZE", -1, "language_cache_size is -1"),
        ("MODEL.GROUNDING.SCORE_THRESH", -0.5, "score_thresh is -0.5"),
        ("MODEL.GROUNDING.NMS_THRESH", 1.5, "nms_thresh is 1.5"),
        ("MODEL.GROUNDING.PRE_NMS_TOPK", 0, "pre_nms_topk is 0"),
        ("MODEL.GROUNDING.DETECTIONS_PER_PROMPT", -1, "detections_per_prompt is -1"),
        ("MODEL.GROUNDING.SCORE_AGGREGATION", "median", "aggregation is 'median'"),
        ("MODEL.GROUNDING.ATSS_TOPK", 0, "topk is 0"),
        ("MODEL.FUSED_HEAD.FUSION_HEADS", 3, "not a multiple of fusion_heads 3"),
        ("MODEL.FUSED_HEAD.LANGUAGE_HEADS", 3, "not a multiple of language_heads 3"),
        ("MODEL.INTER_IMAGE.TEMPERATURE", 0.0, "temperature is 0.0"),
        ("MODEL.MLM.PROB", 1.5, "prob is 1.5"),
        ("MODEL.CAPTION.BEAM_SIZE", 0, "beam_size is 0"),
        ("MODEL.CAPTION.MIN_LENGTH", 0, "min_length is 0"),
        ("MODEL.CAPTION.MAX_LENGTH", 300, "max_length is 300"),
    ],
)
def test_an_invalid_value_is_named_by_argument_and_key(key: str, value: Any, argument: str) -> None:
    losses = ("MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0)
    with pytest.raises(ValueError, match=rf"{argument}.*\(config: .*{key}.*\)$") as caught:
        tiny_model(*TEXT_TASKS, *losses, key, value)
    assert str(caught.value).count(key) == 1


@pytest.mark.parametrize(
    ("key", "value", "argument"),
    [
        ("MODEL.PROMPT.MAX_TOKENS", 2, "max_tokens is 2"),
        ("MODEL.LANGUAGE_BACKBONE.CACHE_SIZE", -1, "language_cache_size is -1"),
    ],
)
def test_a_two_stage_model_names_argument_and_key(key: str, value: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}.*\(config: {key}\)$"):
        two_stage_model(key, value)


def test_without_a_config_only_the_argument_is_named() -> None:
    prompts = GLIPv2.from_config(tiny_cfg())["query_builder"].prompts
    with pytest.raises(ValueError, match=r"answer_grounding is 'guess'.*'text'\)$"):
        QueryBuilder(prompts=prompts, can_answer=True, can_caption=True, answer_grounding="guess")


def test_an_error_without_a_key_is_raised_unchanged() -> None:
    with pytest.raises(ValueError, match="leave one empty") as caught:
        tiny_model(*TEXT_TASKS, "MODEL.ANSWER.FILE", "answers.txt")
    assert "(config:" not in str(caught.value)
    assert caught.value.__cause__ is None
