"""Answers and captions through the whole model; a batch may mix them with detection.

The tests that take the fixtures ``model`` and ``training_model`` also run on other models; see
:mod:`helpers.shared_tests`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.models import random_image, tiny_model, training_input
from helpers.text_tasks import (
    ANSWERING,
    ANSWERS,
    CAPTIONING,
    GROUNDED,
    TEXT_TASKS,
    caption_input,
    detection_input,
    grounded_question_input,
    question_input,
)
from helpers.two_processes import DETERMINISTIC
from torch import Tensor

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.generation.caption_decoder import CaptionDecoder
from glipv2_d2.structures import GenerationConfig, Prompt, Query, QueryKind, TokenBatch

KEEP_ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 50)
PRETRAINING = ("MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0, "MODEL.MASK_ON", True)
PHRASES = ("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone")
UNFUSED_TEXT = (*PHRASES, "MODEL.GROUNDING.SCORE_FUSED_TEXT", False)
LOCALIZATION_LOSSES = {"loss_token", "loss_box", "loss_centerness"}
REGION_PROMPT = "an object"
"""The prompt of region proposals, which some models encode besides the queries."""


@pytest.fixture(scope="module")
def model() -> GLIPv2:
    return tiny_model(*TEXT_TASKS, *KEEP_ALL)


@pytest.fixture(scope="module")
def training_model() -> GLIPv2:
    """Without dropout."""
    built = tiny_model(*TEXT_TASKS, *DETERMINISTIC).train()
    built.language_backbone.eval()
    return built


def inference_input(**fields: Any) -> dict[str, Any]:
    return {"image": random_image(), **fields}


def predict(model: GLIPv2, *inputs: dict) -> list[dict]:
    with torch.no_grad():
        return model(list(inputs))


def assert_same(ours: dict, expected: dict) -> None:
    assert ours.keys() == expected.keys()
    for key in ours.keys() - {"instances", "answer_score"}:
        assert ours[key] == expected[key]
    if "answer_score" in ours:
        assert ours["answer_score"] == pytest.approx(expected["answer_score"], abs=1e-5)
    if "instances" in ours:
        torch.testing.assert_close(
            ours["instances"].scores, expected["instances"].scores, atol=1e-5, rtol=0
        )


# Training.


def test_text_tasks_add_only_their_own_weights_and_losses(training_model: GLIPv2) -> None:
    text = () if training_model.fused_head.score_fused_text else UNFUSED_TEXT
    plain = tiny_model(*DETERMINISTIC, *text).train()
    plain.language_backbone.eval()
    added = training_model.state_dict().keys() - plain.state_dict().keys()
    parts = dict(training_model.text_tasks.named_children())
    assert {"answer", "caption"} <= parts.keys()
    assert {name.split(".")[1] for name in added} == parts.keys()
    assert all(name.startswith("text_tasks.") for name in added)
    losses, with_heads = plain([detection_input()]), training_model([detection_input()])
    assert losses.keys() == LOCALIZATION_LOSSES
    for name in LOCALIZATION_LOSSES:
        assert torch.equal(losses[name], with_heads[name])
    assert with_heads["loss_answer"] == with_heads["loss_caption"] == 0


@pytest.mark.parametrize(
    ("opts", "x", "added"),
    [
        (ANSWERING, question_input(), "loss_answer"),
        (CAPTIONING, caption_input(), "loss_caption"),
    ],
    ids=["answers", "captions"],
)
def test_each_task_can_be_trained_alone_without_boxes(opts: tuple, x: dict, added: str) -> None:
    losses = tiny_model(*opts).train()([x])
    assert losses.keys() == {*LOCALIZATION_LOSSES, added}
    assert losses[added] > 0
    assert all(losses[name] == 0 for name in LOCALIZATION_LOSSES)


@pytest.mark.parametrize("pretraining", [(), PRETRAINING], ids=["alone", "with all losses"])
@pytest.mark.parametrize("text", [(), PHRASES], ids=["bert", "phrases"])
@pytest.mark.parametrize(
    "x",
    [detection_input(), question_input(), caption_input()],
    ids=["boxes", "question", "caption"],
)
def test_every_parameter_gets_a_gradient_from_every_task(
    x: dict, text: tuple, pretraining: tuple
) -> None:
    """Distributed training waits for all of them."""
    model = tiny_model(*TEXT_TASKS, *text, *pretraining).train()
    assert without_gradient(model, x) == []


def test_fused_text_without_a_loss_gets_gradients_of_zero() -> None:
    """Where regions are scored against the text before fusion, and no text task reads the other."""
    model = tiny_model("MODEL.GROUNDING.SCORE_FUSED_TEXT", False).train()
    assert without_gradient(model, detection_input()) == []


def without_gradient(model: GLIPv2, x: dict) -> list[str]:
    """The trained parameters without a finite gradient of the losses of an input."""
    losses = model([x])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return [n for n, grad in trained.items() if grad is None or not grad.isfinite().all()]


def test_the_losses_of_a_mixed_batch_are_those_of_separate_batches(training_model: GLIPv2) -> None:
    inputs = [
        detection_input(),
        question_input(),
        caption_input(),
        question_input("how many dogs are in the picture?", seed=3, answers={"2": 1.0}),
        caption_input("two", seed=4),
    ]
    mixed = training_model(inputs)
    detections, questions, captions = inputs[:1], [inputs[1], inputs[3]], [inputs[2], inputs[4]]
    for name in LOCALIZATION_LOSSES:
        torch.testing.assert_close(mixed[name], training_model(detections)[name])
    torch.testing.assert_close(mixed["loss_answer"], training_model(questions)["loss_answer"])
    torch.testing.assert_close(mixed["loss_caption"], training_model(captions)["loss_caption"])


def test_one_image_may_have_all_tasks(training_model: GLIPv2) -> None:
    """Class names, a question and two target captions of the same image."""
    x = {
        **detection_input(),
        "question": "is there a dog?",
        "answers": {"yes": 1.0},
        "target_captions": ["a dog", "two dogs on a mat"],
    }
    image = x["image"]
    losses = training_model([x])
    question = question_input(answers={"yes": 1.0}, image=image)
    captions = [caption_input(c, image=image) for c in x["target_captions"]]
    expected = training_model([detection_input(), question, *captions])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])


def test_further_texts_of_an_image_have_the_losses_of_separate_inputs(
    training_model: GLIPv2,
) -> None:
    image, another = random_image(seed=5), random_image(seed=6)
    questions = [
        question_input(image=image),
        question_input("what is it?", answers={"dog": 1.0}, image=image),
    ]
    captions = [caption_input(text, image=image) for text in ("a dog", "two dogs on a mat")]
    other = question_input(image=another)
    more = [{k: v for k, v in x.items() if k != "image"} for x in (questions[1], *captions)]
    losses = training_model([{**questions[0], "more": more}, other])
    expected = training_model([*questions, *captions, other])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])


def test_an_error_in_a_further_text_names_it(training_model: GLIPv2) -> None:
    further = {"question": " ", "question_id": 8, "file_name": "8.jpg"}
    with pytest.raises(ValueError, match=r"question 8 of image '8\.jpg'.*is empty"):
        training_model([question_input(more=[further])])


def test_a_grounded_question_is_encoded_once_with_its_answer_masked(
    training_model: GLIPv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    tokenizer = training_model.query_builder.tokenizer
    tokenize = tokenizer.__call__
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda _, prompts: batches.append([p.text for p in prompts]) or tokenize(prompts),
    )
    losses = training_model([grounded_question_input()])
    assert [texts for texts in batches if texts != [REGION_PROMPT]] == [[f"{GROUNDED} [MASK]"]]
    assert all(losses[name] > 0 for name in (*LOCALIZATION_LOSSES, "loss_answer"))


def test_the_box_of_an_answer_belongs_to_the_mask_token(training_model: GLIPv2) -> None:
    (query,) = training_model.query_builder.for_training([grounded_question_input()])
    assert query.kind is QueryKind.ANSWER
    assert query.prompt.phrases == ["the mat", "[MASK]"]
    assert query.gt_instances.gt_classes.tolist() == list(query.prompt.classes)
    assert query.answers == {"dog": 1.0}


def test_localizing_its_phrases_does_not_change_the_loss_of_a_question(
    training_model: GLIPv2,
) -> None:
    x = grounded_question_input()
    bare = question_input(GROUNDED, image=x["image"], answers=x["answers"])
    torch.testing.assert_close(
        training_model([x])["loss_answer"], training_model([bare])["loss_answer"]
    )


def test_words_of_questions_are_not_masked() -> None:
    model = tiny_model(*TEXT_TASKS, "MODEL.MLM.WEIGHT", 1.0, "MODEL.MLM.PROB", 1.0).train()
    losses = model([grounded_question_input(), question_input()])
    assert losses["loss_mlm"] == 0


def assert_text_losses_reach_the_image(model: GLIPv2) -> None:
    losses = model([question_input(), caption_input()])
    for name in ("loss_answer", "loss_caption"):
        part = next(p for n, p in model.backbone.named_parameters() if "fpn_lateral3.weight" in n)
        (gradient,) = torch.autograd.grad(losses[name], part, retain_graph=True)
        assert gradient.any()


def test_both_losses_have_gradients_in_the_image_backbone() -> None:
    assert_text_losses_reach_the_image(tiny_model(*TEXT_TASKS).train())


def assert_losses_are_finite_float32_under_autocast(model: GLIPv2) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([question_input(), caption_input(), grounded_question_input()])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_answer"].dtype == losses["loss_caption"].dtype == torch.float32


def test_bfloat16_autocast_gives_finite_losses_in_float32() -> None:
    assert_losses_are_finite_float32_under_autocast(tiny_model(*TEXT_TASKS).train())


# Inference.


def test_the_results_of_a_mixed_batch_are_those_of_separate_batches(model: GLIPv2) -> None:
    inputs = [
        inference_input(classes=["cat", "dog"]),
        inference_input(question="is there a dog?"),
        inference_input(describe=True),
        inference_input(question="how many dogs are there?", classes=["cat"], describe=True),
    ]
    for ours, x in zip(predict(model, *inputs), inputs, strict=True):
        assert_same(ours, predict(model, x)[0])


def test_inputs_that_share_an_image_tensor_have_the_results_of_separate_batches(
    model: GLIPv2,
) -> None:
    image, another = random_image(), random_image(seed=1)
    inputs = [
        inference_input(image=image, question="is there a dog?"),
        inference_input(image=another, classes=["cat", "dog"]),
        inference_input(image=image, classes=["cat", "dog"]),
        inference_input(image=another, describe=True),
        inference_input(image=image, describe=True),
        inference_input(image=image, question="how many dogs are there?"),
    ]
    for ours, x in zip(predict(model, *inputs), inputs, strict=True):
        assert_same(ours, predict(model, x)[0])


def test_a_shared_image_tensor_is_encoded_once(model: GLIPv2) -> None:
    sizes = []
    handle = model.backbone.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    image = random_image()
    predict(
        model,
        inference_input(image=image, question="is there a dog?"),
        inference_input(image=image, describe=True),
    )
    handle.remove()
    assert sizes == [1]


def test_only_requested_results_are_computed(
    model: GLIPv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("boxes were detected")

    with monkeypatch.context() as patch:
        patch.setattr(model.proposal_generator, "detect", fail)
        outputs = predict(
            model, inference_input(question="is there a dog?"), inference_input(describe=True)
        )
    assert [output.keys() for output in outputs] == [{"answer", "answer_score"}, {"caption"}]
    assert predict(model, inference_input(classes=["cat"]))[0].keys() == {"instances"}


def test_the_backbone_runs_once_for_all_tasks(model: GLIPv2) -> None:
    calls = []
    handle = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    predict(
        model,
        inference_input(question="what is on the mat?", ground=True),
        inference_input(describe=True),
    )
    handle.remove()
    assert len(calls) == 1


def test_the_answer_is_in_the_vocabulary_and_its_score_a_probability(model: GLIPv2) -> None:
    (output,) = predict(model, inference_input(question="is there a dog?"))
    assert output["answer"] in ANSWERS and 0 < output["answer_score"] < 1


def test_choices_may_be_outside_the_vocabulary_of_a_text_classifier() -> None:
    model = tiny_model(*TEXT_TASKS, "MODEL.ANSWER.CLASSIFIER", "text")
    choices = ["a purple elephant", "nothing"]
    (output,) = predict(model, inference_input(question="what is it?", choices=choices))
    assert output["answer"] in choices


def test_a_text_classifier_answers_with_an_alternative_that_the_question_names() -> None:
    model = tiny_model(*TEXT_TASKS, "MODEL.ANSWER.CLASSIFIER", "text")
    question = "is this a purple elephant or a small mouse?"
    named = ["purple elephant", "small mouse"]
    ours, expected, free = (
        predict(model, inference_input(question=question, **choices))[0]
        for choices in ({}, {"choices": named}, {"choices": [*ANSWERS]})
    )
    assert ours == expected
    assert free["answer"] in ANSWERS


def test_a_fixed_vocabulary_is_kept_for_a_question_that_names_its_answers(model: GLIPv2) -> None:
    (output,) = predict(model, inference_input(question="is it day or night?"))
    assert output["answer"] in ANSWERS


def test_the_score_of_an_answer_depends_on_the_image(model: GLIPv2) -> None:
    scores = [
        predict(model, inference_input(question="is there a dog?", image=random_image(seed=seed)))[
            0
        ]["answer_score"]
        for seed in (0, 1)
    ]
    assert scores[0] != scores[1]


# Captions.


def caption_queries(num_images: int, text: str = "") -> list[Query]:
    return [Query(i, QueryKind.CAPTION, Prompt(text, (), ())) for i in range(num_images)]


def build_decoder(model: GLIPv2, inputs: Sequence[dict]) -> CaptionDecoder:
    """A decoder of one caption per input."""
    features, queries = model.encode_images(list(inputs)), caption_queries(len(inputs))
    context = model.text_tasks.encode_context(model, features, queries)
    return model.text_tasks.build_decoder(model, features, queries, context)


def caption_hidden(model: GLIPv2, x: dict, caption: str) -> Tensor:
    """(1, T, D) features of a whole caption, as in training."""
    features, queries = model.encode_images([x]), caption_queries(1, caption)
    tokens = model.tokenize(queries, causal=True)
    fused = model.fuse_text(features, queries, tokens, model.encode_text(tokens))
    context = model.text_tasks.encode_context(model, features, queries)
    return model.text_tasks.encode_captions(features, fused, context).text.hidden


def uncached_log_probs(model: GLIPv2, x: dict, token_ids: Sequence[int]) -> Tensor:
    """(1, vocabulary) log-probabilities of the token after [CLS] and some tokens."""
    features, queries = model.encode_images([x]), caption_queries(1)
    ids = torch.tensor([[101, *token_ids]])
    no_spans = (torch.zeros(0, ids.shape[1], dtype=torch.bool),)
    prompts = tuple(query.prompt for query in queries)
    tokens = TokenBatch(ids, torch.ones_like(ids).bool(), no_spans, no_spans, prompts, causal=True)
    fused = model.fuse(features, queries, tokens, model.encode_text(tokens))
    context = model.text_tasks.encode_context(model, features, queries)
    hidden = model.text_tasks.encode_captions(features, fused, context).text.hidden
    decoder = model.text_tasks.build_decoder(model, features, queries, context)
    decoder.begin(captions_per_image=1)
    decoder.input_ids = ids
    return model.text_tasks.caption.next_log_probs(decoder.output(hidden[:, -1]))


@torch.no_grad()
def assert_decoding_in_steps_equals_the_whole_caption(model: GLIPv2) -> None:
    caption = "a small dog on a mat"
    whole = caption_hidden(model, inference_input(), caption)
    ids = torch.tensor([[101, *model.query_builder.tokenizer.encode([caption])[0], 102]])
    decoder = build_decoder(model, [inference_input()])
    in_steps = torch.stack([decoder.decode(column).hidden for column in ids.split(1, dim=1)], dim=1)
    torch.testing.assert_close(in_steps, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", [(), PHRASES], ids=["bert", "phrases"])
def test_decoding_with_a_cache_equals_encoding_the_whole_caption(text: tuple) -> None:
    assert_decoding_in_steps_equals_the_whole_caption(
        tiny_model(*TEXT_TASKS, *text, "MODEL.FUSED_HEAD.NUM_BLOCKS", 3)
    )


@torch.no_grad()
def test_reordered_captions_continue_as_without_a_cache(model: GLIPv2) -> None:
    inputs = [inference_input(image=random_image(seed=seed)) for seed in (0, 1)]
    encode = model.query_builder.tokenizer.encode
    decoder = build_decoder(model, inputs)
    begun = encode(["a dog on", "the cat is", "a small mat", "red is a", "the dog is", "no cat on"])
    decoder.decode(torch.tensor([[101, *ids] for ids in begun]))
    rows = [2, 0, 0, 5, 3, 5]
    decoder.reorder(torch.tensor(rows))
    following = encode(["red", "mat", "dog", "a", "red", "cat"])
    ours = model.text_tasks.caption.next_log_probs(decoder.decode(torch.tensor(following)))
    for i, (row, ids) in enumerate(zip(rows, following, strict=True)):
        expected = uncached_log_probs(model, inputs[i // 3], [*begun[row], *ids])
        torch.testing.assert_close(ours[i : i + 1], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_tokens_depend_on_earlier_tokens_and_on_the_image_only(model: GLIPv2) -> None:
    image, another = (inference_input(image=random_image(seed=seed)) for seed in (0, 1))
    hidden = caption_hidden(model, image, "a dog on a mat")
    other_end = caption_hidden(model, image, "a dog on a car")
    assert torch.equal(hidden[:, :5], other_end[:, :5])
    assert not torch.allclose(hidden[:, 5:], other_end[:, 5:])
    other_image = caption_hidden(model, another, "a dog on a mat")
    assert (hidden - other_image).abs().amax(dim=-1).min() > 1e-6


@torch.no_grad()
def test_one_beam_generates_the_likeliest_token_of_every_step(model: GLIPv2) -> None:
    x = inference_input(describe=GenerationConfig(beam_size=1, max_length=6, prefix="a dog"))
    tokenizer = model.query_builder.tokenizer
    generated = tokenizer.encode(["a dog"])[0]
    while len(generated) < 6:
        log_probs = uncached_log_probs(model, x, generated)[0]
        log_probs[[i for i in tokenizer.special_ids if i != 102]] = -torch.inf
        if log_probs.argmax() == 102:
            break
        generated.append(int(log_probs.argmax()))
    assert predict(model, x)[0]["caption"] == tokenizer.decode(generated)


@pytest.mark.parametrize("prefix", ["🐱", "a [SEP] cat"])
def test_a_prefix_outside_the_vocabulary_is_an_error(prefix: str, model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="words outside the tokenizer's"):
        predict(model, inference_input(describe=GenerationConfig(beam_size=1, prefix=prefix)))


def test_captions_have_the_configured_lengths_and_prefix(model: GLIPv2) -> None:
    generation = GenerationConfig(beam_size=3, min_length=4, max_length=5, prefix="a dog")
    (output,) = predict(model, inference_input(describe=generation))
    assert output["caption"].startswith("a dog")


def test_an_input_with_target_captions_gets_a_caption() -> None:
    """Records of a captioning dataset contain the references."""
    model = tiny_model(*TEXT_TASKS)
    (output,) = predict(model, caption_input())
    assert output.keys() == {"caption"}


# Grounding of answers and captions.


@pytest.mark.parametrize("grounding", ["mask", "text"])
def test_the_answer_and_the_phrases_of_a_question_are_localized(
    grounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(*TEXT_TASKS, *KEEP_ALL, "MODEL.ANSWER.GROUNDING", grounding)
    encoded: list[str] = []
    fuse = model.fuse
    monkeypatch.setattr(
        model,
        "fuse",
        lambda features, queries, tokens, text: (
            encoded.extend(query.prompt.text for query in queries)
            or fuse(features, queries, tokens, text)
        ),
    )
    (output,) = predict(
        model, inference_input(question=f"{GROUNDED} ", ground=True, choices=["dog"])
    )
    assert output["phrases"] == ["the mat", "dog"]
    assert output["prompt"].text == f"{GROUNDED} {output['answer']}"
    assert set(output["instances"].pred_classes.tolist()) == {0, 1}
    answer = "[MASK]" if grounding == "mask" else output["answer"]
    assert encoded == [f"{GROUNDED} {answer}"]


@pytest.mark.parametrize("answer", ["no", "2"])
@pytest.mark.parametrize(
    ("grounding", "question", "phrases"),
    [
        ("text", "is the dog here?", ["the dog"]),
        # Without another phrase, or as a mask token, the answer is localized.
        ("text", "is it here?", ["{answer}"]),
        ("mask", "is the dog here?", ["the dog", "{answer}"]),
    ],
)
def test_a_yes_no_or_number_is_not_localized_by_its_text(
    grounding: str, question: str, phrases: list[str], answer: str
) -> None:
    model = tiny_model(*TEXT_TASKS, *KEEP_ALL, "MODEL.ANSWER.GROUNDING", grounding)
    x = inference_input(question=question, ground=True)
    prompt = model.query_builder.text_prompt(x, {"answer": answer})
    assert prompt.text == f"{question} {answer}"
    assert prompt.phrases == [text.format(answer=answer) for text in phrases]


def test_an_answer_that_exceeds_the_token_limit_is_localized_by_a_mask_token(
    model: GLIPv2,
) -> None:
    question = " ".join(["dog"] * 253)
    (output,) = predict(model, inference_input(question=question, ground=True, choices=["dog"]))
    assert output["phrases"][-1] == output["answer"]


def test_grounding_does_not_change_the_answer(model: GLIPv2) -> None:
    plain, grounded = (
        predict(model, inference_input(question=GROUNDED, ground=ground))[0]
        for ground in (False, True)
    )
    assert_same(plain, {key: grounded[key] for key in plain})


def test_the_phrases_of_a_generated_caption_are_localized(model: GLIPv2) -> None:
    generation = GenerationConfig(beam_size=1, max_length=6, prefix="a dog on the mat")
    (output,) = predict(model, inference_input(describe=generation, ground=True))
    assert output["prompt"].text == output["caption"]
    assert output["phrases"][0] == "a dog"
    assert set(output["instances"].pred_classes.tolist()) == set(range(len(output["phrases"])))


def test_bfloat16_autocast_answers_and_captions(model: GLIPv2) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (output,) = predict(
            model, inference_input(question=GROUNDED, describe=GenerationConfig(3, max_length=4))
        )
    assert 0 < output["answer_score"] < 1 and output["caption"]


# Invalid inputs.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, r"question 7 of image '7.jpg': the question ' ' is empty"),
        ({"question": None}, "the question None is empty"),
        ({"question": "why " * 260}, "question 7 of image '7.jpg'.*263 tokens.*limit is 256"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_an_invalid_question_is_an_error_with_its_id(
    change: dict, message: str, training: bool, model: GLIPv2
) -> None:
    model = tiny_model(*TEXT_TASKS).train() if training else model
    with pytest.raises(ValueError, match=message):
        model([question_input(**change)])


@pytest.mark.parametrize("choices", [[], "yes", ["yes", "Yes."], ["yes", " "]])
def test_invalid_choices_are_an_error_with_their_question(choices: object, model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"question 7 of image '7.jpg': the choices: "):
        predict(model, inference_input(question="is it?"), question_input(choices=choices))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"answers": {"yes": 1.0}, "file_name": "3.jpg"}, "'3.jpg' has answers, but no 'question'"),
        ({"file_name": "3.jpg"}, "'3.jpg' has no training target"),
        ({"question": "is it?", "file_name": "3.jpg"}, "'3.jpg' has no 'answers'"),
        ({"target_captions": [], "file_name": "3.jpg"}, r"'3.jpg'.*\[\] is not a list of captions"),
        ({"target_captions": "a dog"}, "'a dog' is not a list of captions"),
        ({"target_captions": ["a dog", " "]}, "the caption ' ' is empty"),
        ({"target_captions": ["a dog", None]}, "the caption None is empty"),
    ],
)
def test_a_record_without_a_valid_target_is_an_error_with_its_file(x: dict, message: str) -> None:
    model = tiny_model(*TEXT_TASKS).train()
    with pytest.raises(ValueError, match=message):
        model([question_input(), {"image": random_image(), **x}])


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("x", "message"),
    [(question_input(), "MODEL.ANSWER.WEIGHT"), (caption_input(), "MODEL.CAPTION.WEIGHT")],
)
def test_a_task_without_its_head_is_an_error_with_a_remedy(
    x: dict, message: str, training: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model().train(training)([x])


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": ["cat"], "question": "is it?"},
        {"question": "is it?", "describe": True},
        {"classes": ["cat"]},
    ],
)
def test_only_one_generated_text_can_be_grounded(fields: dict, model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="'ground' localizes the phrases of one"):
        predict(model, inference_input(ground=True, **fields))


@pytest.mark.parametrize("opts", [ANSWERING, CAPTIONING], ids=["answers", "captions"])
def test_text_tasks_need_a_head_that_fuses_text(opts: tuple) -> None:
    with pytest.raises(ValueError, match="DynamicHead does not fuse text"):
        tiny_model(*opts, "MODEL.FUSED_HEAD.NAME", "DynamicHead")


def test_more_beams_than_tokens_are_an_error_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match=r"beam_size is 30523.*30522 tokens.*CAPTION.BEAM_SIZE"):
        tiny_model(*TEXT_TASKS, "MODEL.CAPTION.BEAM_SIZE", 30523)


def test_an_unknown_answer_grounding_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"answer_grounding is 'guess'.*\(config: MODEL.ANSWER.GROUNDING\)"
    ):
        tiny_model("MODEL.ANSWER.GROUNDING", "guess")


def test_a_caption_beyond_the_token_limit_is_truncated_in_training() -> None:
    model = tiny_model(*TEXT_TASKS).train()
    queries = model.query_builder.for_training([caption_input("dog " * 300)])
    captions = [query for query in queries if query.kind is QueryKind.CAPTION]
    assert model.tokenize(captions).input_ids.shape == (1, 256)


def test_a_batch_without_boxes_gets_an_empty_placeholder(model: GLIPv2) -> None:
    *_, placeholder = model.query_builder.for_training([question_input()])
    assert placeholder.is_placeholder and len(placeholder.gt_instances) == 0
    with_boxes = model.query_builder.for_training(
        [question_input(), training_input([], [], classes=["a"])]
    )
    (localized,) = [query for query in with_boxes if query.gt_instances is not None]
    assert not localized.is_placeholder
    assert localized.image == 1
