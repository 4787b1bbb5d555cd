"""What an input requests is decided by the QueryBuilder."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.models import random_image, training_input
from helpers.text_tasks import (
    GROUNDED,
    caption_input,
    detection_input,
    grounded_question_input,
    question_input,
)

from glipv2_d2.modeling.prompt_builder import PromptBuilder
from glipv2_d2.modeling.queries import QueryBuilder, iterate_chunks
from glipv2_d2.structures import GenerationConfig, Prompt, Query, QueryKind
from glipv2_d2.text.prompts import caption_prompt, class_prompt
from glipv2_d2.text.tokenizer import Tokenizer

DETECT, GROUND, ANSWER, CAPTION = QueryKind
TOKENIZER = Tokenizer()


def make_builder(max_classes: int = 0, num_orders: int = 0, **options: Any) -> QueryBuilder:
    prompts = PromptBuilder(
        tokenizer=TOKENIZER,
        separator=". ",
        max_classes=max_classes,
        default_classes=lambda x, training: ["person"],
        num_orders=num_orders,
        accepts_negatives=True,
    )
    return QueryBuilder(prompts=prompts, **{"can_answer": True, "can_caption": True, **options})


def inference_input(**fields: Any) -> dict[str, Any]:
    return {"image": random_image(), **fields}


def summary(queries: list[Query]) -> list[tuple[int, QueryKind, str]]:
    return [(query.image, query.kind, query.prompt.text) for query in queries]


# Training.


def grounded_caption_input() -> dict[str, Any]:
    return training_input([[5, 5, 50, 60]], [0], caption="a dog on a mat", phrases=[[[0, 5]]])


def test_the_training_queries_of_a_mixed_batch() -> None:
    everything = {
        **detection_input(),
        "question": "is it red?",
        "answers": {"yes": 1.0},
        "target_captions": ["a cat"],
        "more": [
            {"question": "is it a dog?", "answers": {"no": 1.0}},
            {"target_captions": ["a small cat", "one cat"]},
        ],
    }
    inputs = [
        everything,
        grounded_caption_input(),
        grounded_question_input(),
        question_input(),
        caption_input("two dogs"),
    ]
    queries = make_builder().for_training(inputs)
    assert summary(queries) == [
        (0, DETECT, "cat. traffic light"),
        (0, ANSWER, "is it red? [MASK]"),
        (0, ANSWER, "is it a dog? [MASK]"),
        (0, CAPTION, "a cat"),
        (0, CAPTION, "a small cat"),
        (0, CAPTION, "one cat"),
        (1, GROUND, "a dog on a mat"),
        (2, ANSWER, f"{GROUNDED} [MASK]"),
        (3, ANSWER, "is there a dog? [MASK]"),
        (4, CAPTION, "two dogs"),
    ]
    localized = [i for i, query in enumerate(queries) if query.gt_instances is not None]
    assert localized == [0, 6, 7]
    answered = {i: query.answers for i, query in enumerate(queries) if query.answers is not None}
    assert answered == {
        1: {"yes": 1.0},
        2: {"no": 1.0},
        7: {"dog": 1.0},
        8: {"yes": 1.0, "maybe": 0.6},
    }
    assert not any(query.is_placeholder for query in queries)


def test_a_question_about_another_caption_is_a_query_of_its_own() -> None:
    x = {**grounded_caption_input(), "question": "is it red?", "answers": {"yes": 1.0}}
    kinds = [query.kind for query in make_builder().for_training([x])]
    assert kinds == [GROUND, ANSWER]


def test_only_a_batch_without_boxes_gets_a_placeholder() -> None:
    builder = make_builder()
    queries = builder.for_training([question_input(), caption_input()])
    assert [query.is_placeholder for query in queries] == [False, False, True]
    assert queries[-1].gt_instances.image_size == (64, 64)
    empty = training_input([], [], classes=["cat"])
    queries = builder.for_training([question_input(), empty])
    assert not any(query.is_placeholder for query in queries)


# Inference.


def test_the_text_queries_of_a_mixed_batch() -> None:
    generation = GenerationConfig(beam_size=1)
    inputs = [
        inference_input(classes=["cat"]),
        inference_input(question="is it red?", choices=["yes", "no"], describe=generation),
        inference_input(question=" what is it? "),
        inference_input(describe=True),
        inference_input(target_captions=["a cat"]),
        inference_input(describe=False),
    ]
    queries = make_builder().text_queries(inputs)
    assert summary(queries) == [
        (1, ANSWER, "is it red? [MASK]"),
        (1, CAPTION, ""),
        (2, ANSWER, "what is it? [MASK]"),
        (3, CAPTION, ""),
        (4, CAPTION, ""),
    ]
    assert [query.choices for query in queries] == [["yes", "no"], None, None, None, None]
    assert [query.generation for query in queries] == [None, generation, None, None, None]


def test_the_localized_queries_of_a_mixed_batch() -> None:
    prompt = class_prompt(["hen"])
    generated = caption_prompt("a cow", [[(0, 5)]])
    inputs = [
        inference_input(classes=["cat", "dog", "cow"]),
        inference_input(caption="a dog", phrases=[[[0, 5]]]),
        inference_input(prompt=prompt, caption="a dog", classes=["cat"]),
        inference_input(question="is it red?"),
        inference_input(describe=True),
        inference_input(question="is it red?", describe=True, classes=["horse"]),
        inference_input(describe=True, ground=True),
        inference_input(),
    ]
    outputs: list[dict[str, Any]] = [{} for _ in inputs]
    outputs[6] = {"prompt": generated}
    queries = make_builder(max_classes=2).localized_queries(inputs, outputs)
    assert summary(queries) == [
        (0, DETECT, "cat. dog"),
        (0, DETECT, "cow"),
        (1, GROUND, "a dog"),
        (2, DETECT, "hen"),
        (5, DETECT, "horse"),
        (6, GROUND, "a cow"),
        (7, DETECT, "person"),
    ]
    assert all(query.gt_instances is None for query in queries)


def test_models_without_a_head_reject_its_inputs() -> None:
    builder = make_builder(can_answer=False, can_caption=False)
    for x, argument in ((question_input(), "can_answer"), (caption_input(), "can_caption")):
        for build in (builder.text_queries, builder.for_training):
            with pytest.raises(ValueError, match=rf"no .* head \({argument} is False\)") as caught:
                build([x])
            assert "config" not in str(caught.value)


def test_errors_about_inputs_name_the_given_config_keys() -> None:
    builder = make_builder(config_keys={"max_tokens": "MODEL.PROMPT.MAX_TOKENS"})
    with pytest.raises(ValueError, match=r"raise max_tokens \(config: MODEL\.PROMPT\.MAX_TOKENS\)"):
        builder.text_queries([inference_input(question="is it? " * 256)])


def test_nouns_are_only_extracted_for_backbones_that_encode_them() -> None:
    x = inference_input(question="is the dog on a mat?")
    (plain,) = make_builder().text_queries([x])
    (query,) = make_builder(encodes_nouns=True).text_queries([x])
    assert plain.prompt.nouns == ()
    nouns = [query.prompt.text[start:end] for start, end in query.prompt.nouns]
    assert nouns == ["dog", "mat"]


def test_other_orders_are_further_prompts_of_the_same_query() -> None:
    builder = make_builder(num_orders=3)
    (query,) = builder.localized_queries([inference_input(classes=["dog", "cat"])], [{}])
    assert query.prompt.text == "cat. dog"
    (other,) = builder.other_orders(query)
    assert (other.image, other.kind, other.prompt.text) == (0, DETECT, "dog. cat")
    (caption,) = builder.localized_queries(
        [inference_input(caption="a dog", phrases=[[[0, 5]]])], [{}]
    )
    assert builder.other_orders(caption) == []


# Chunks.


def test_chunks_have_at_most_one_query_per_image_and_keep_their_order() -> None:
    images = [0, 0, 0, 2, 3, 3]
    queries = [Query(image, DETECT, Prompt(str(k), (), ())) for k, image in enumerate(images)]
    chunks = [[query.prompt.text for query in chunk] for chunk in iterate_chunks(queries)]
    assert chunks == [["0", "3", "4"], ["1", "5"], ["2"]]


def test_without_queries_there_are_no_chunks() -> None:
    assert list(iterate_chunks([])) == []
