"""One model that finds, answers and describes; a batch may ask for all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import random_image, tiny_model, training_input
from helpers.text_tasks import (
    ANSWERING,
    ANSWERS,
    DESCRIBING,
    GROUNDED,
    REGIONS,
    TEXT_TASKS,
    caption_input,
    detection_input,
    grounded_question_input,
    question_input,
)

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.generation.beam_search import GenerationConfig
from glipv2_d2.modeling.saying import caption_reader, find_regions, read_image, with_regions
from glipv2_d2.modeling.tasks import Asked
from glipv2_d2.structures import Prompt, Regions, TokenBatch
from glipv2_d2.text.prompts import demo_prompt

NOTHING_RANDOM = (
    *("MODEL.FUSED_HEAD.FUSION_DROPOUT", 0.0, "MODEL.FUSED_HEAD.LANGUAGE_DROPOUT", 0.0),
    *("MODEL.FPN.DROP_BLOCK_PROB", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
)
ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 50)
PRETRAINING = ("MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0, "MODEL.MASK_ON", True)
PHRASES = ("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone")
WORDS_BEFORE_FUSION = (*PHRASES, "MODEL.GROUNDING.FUSED_WORDS", False)
NAMED = (
    *(*REGIONS, *WORDS_BEFORE_FUSION),
    *("MODEL.REGION_READER.NAMES_FILE", "package:glipv2_d2/assets/mini_names.txt"),
)
NAMING = (
    *(*NAMED, "MODEL.CAPTION.NAME", "NamingCaptionHead"),
    *("MODEL.ANSWER.NAME", "PointingAnswerHead"),
)
GROUNDING = {"loss_token", "loss_box", "loss_centerness"}


@pytest.fixture(scope="module", params=[(), REGIONS, NAMING], ids=["maps", "regions", "naming"])
def model(request: pytest.FixtureRequest) -> GLIPv2:
    return tiny_model(*TEXT_TASKS, *ALL, *request.param)


@pytest.fixture(scope="module", params=[(), REGIONS, NAMING], ids=["maps", "regions", "naming"])
def training_model(request: pytest.FixtureRequest) -> GLIPv2:
    """Without anything random."""
    built = tiny_model(*TEXT_TASKS, *NOTHING_RANDOM, *request.param).train()
    built.language_backbone.eval()
    return built


def asked(**fields: Any) -> dict[str, Any]:
    """An input of inference."""
    return {"image": random_image(), **fields}


def answer(model: GLIPv2, *inputs: dict) -> list[dict]:
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


def heeding_matches(*opts: Any) -> GLIPv2:
    """A model whose questions have learned to heed how well regions match their words."""
    built = tiny_model(*ANSWERING, *REGIONS, *opts)
    for part in (built.region_reader.matches.score, built.region_reader.matches.region):
        torch.nn.init.normal_(part.weight)
    return built


def test_questions_teach_the_region_word_score_where_they_read_regions() -> None:
    for build, learns in ((heeding_matches, True), (lambda *o: tiny_model(*ANSWERING, *o), False)):
        model = build(*NOTHING_RANDOM).train()
        model([question_input()])["loss_answer"].backward()
        gradient = model.proposal_generator.region_word.projection.weight.grad
        assert (gradient is not None and bool(gradient.any())) == learns


def test_a_question_with_matches_is_worth_the_same_in_every_batch() -> None:
    model = heeding_matches(*NOTHING_RANDOM).train()
    model.language_backbone.eval()
    plain, grounded = question_input(), grounded_question_input()
    with torch.no_grad():
        losses = [float(model([x])["loss_answer"]) for x in (plain, grounded)]
        both = float(model([plain, grounded, detection_input()])["loss_answer"])
    assert both == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_regions_know_the_names_that_they_match(tmp_path: Path) -> None:
    names = ["a dog", "traffic light", "sea"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    naming = (
        *("MODEL.REGION_READER.NAMES_FILE", str(tmp_path / "names.txt")),
        *("MODEL.GROUNDING.FUSED_WORDS", False),
    )
    model = tiny_model(*ANSWERING, *REGIONS, *PHRASES, *naming)
    images = model.preprocess_image([{"image": random_image()}])
    features = model.backbone(images.tensor)
    with torch.no_grad():
        (regions,) = find_regions(model, images, features, [[0]])
        tokens = model.tokenizer([demo_prompt(names)])
        words = model.language_backbone(tokens)
        logits = model.proposal_generator.match(regions.fused_features, words)[0]
    first_tokens = [int(row.nonzero()[0]) for row in tokens.positive_maps[0]]
    torch.testing.assert_close(regions.name_logits[0], logits[:, first_tokens])


def test_names_of_regions_need_words_that_have_read_no_image(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog")
    file = ("MODEL.REGION_READER.NAMES_FILE", str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match=r"NAMES_FILE.*set MODEL\.GROUNDING\.FUSED_WORDS to False"):
        tiny_model(*ANSWERING, *REGIONS, *file)


def test_a_model_that_writes_names_takes_another_list_with_the_same_weights(
    tmp_path: Path,
) -> None:
    (tmp_path / "names.txt").write_text("zebra\ntennis racket")
    file = ("MODEL.REGION_READER.NAMES_FILE", str(tmp_path / "names.txt"))
    model, other = tiny_model(*DESCRIBING, *NAMING), tiny_model(*DESCRIBING, *NAMING, *file)
    other.load_state_dict(model.state_dict())
    assert len(other.caption.pointer.pieces) == 2


def test_a_head_that_writes_names_of_regions_needs_names() -> None:
    with pytest.raises(ValueError, match=r"writes names of regions: set MODEL\.REGION_READER"):
        tiny_model(*DESCRIBING, *REGIONS, "MODEL.CAPTION.NAME", "NamingCaptionHead")


def test_a_task_that_is_not_configured_costs_nothing(training_model: GLIPv2) -> None:
    trunk = () if training_model.scores_fused_words else WORDS_BEFORE_FUSION
    plain = tiny_model(*NOTHING_RANDOM, *trunk).train()
    plain.language_backbone.eval()
    added = training_model.state_dict().keys() - plain.state_dict().keys()
    reader = {"region_reader"} if training_model.region_reader is not None else set()
    assert {name.partition(".")[0] for name in added} == {"answer", "caption", *reader}
    losses, with_heads = plain([detection_input()]), training_model([detection_input()])
    assert losses.keys() == GROUNDING
    for name in GROUNDING:
        assert torch.equal(losses[name], with_heads[name])
    assert with_heads["loss_answer"] == with_heads["loss_caption"] == 0


@pytest.mark.parametrize(
    ("opts", "x", "added"),
    [
        (ANSWERING, question_input(), "loss_answer"),
        (DESCRIBING, caption_input(), "loss_caption"),
    ],
    ids=["answers", "captions"],
)
def test_each_task_comes_alone_and_finds_nothing(opts: tuple, x: dict, added: str) -> None:
    losses = tiny_model(*opts).train()([x])
    assert losses.keys() == {*GROUNDING, added}
    assert losses[added] > 0
    assert all(losses[name] == 0 for name in GROUNDING)


@pytest.mark.parametrize("pretraining", [(), PRETRAINING], ids=["alone", "with all losses"])
@pytest.mark.parametrize(
    "text",
    [(), PHRASES, REGIONS, NAMING],
    ids=["bert", "phrases", "bert and regions", "named regions"],
)
@pytest.mark.parametrize(
    "x",
    [detection_input(), question_input(), caption_input()],
    ids=["boxes", "question", "caption"],
)
def test_every_parameter_gets_a_gradient_whatever_is_asked(
    x: dict, text: tuple, pretraining: tuple
) -> None:
    """Distributed training waits for all of them."""
    model = tiny_model(*TEXT_TASKS, *text, *pretraining).train()
    assert without_gradient(model, x) == []


@pytest.mark.parametrize("x", [detection_input(), caption_input()], ids=["boxes", "caption"])
def test_every_parameter_of_a_model_that_only_describes_gets_a_gradient(x: dict) -> None:
    assert without_gradient(tiny_model(*DESCRIBING, *REGIONS).train(), x) == []


def without_gradient(model: GLIPv2, x: dict) -> list[str]:
    losses = model([x])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return [n for n, grad in trained.items() if grad is None or not grad.isfinite().all()]


def test_the_losses_of_a_mixed_batch_are_those_of_separate_ones(training_model: GLIPv2) -> None:
    inputs = [
        detection_input(),
        question_input(),
        caption_input(),
        question_input("how many dogs are in the picture?", seed=3, answers={"2": 1.0}),
        caption_input("two", seed=4),
    ]
    mixed = training_model(inputs)
    detections, questions, captions = inputs[:1], [inputs[1], inputs[3]], [inputs[2], inputs[4]]
    for name in GROUNDING:
        torch.testing.assert_close(mixed[name], training_model(detections)[name])
    torch.testing.assert_close(mixed["loss_answer"], training_model(questions)["loss_answer"])
    torch.testing.assert_close(mixed["loss_caption"], training_model(captions)["loss_caption"])


def test_one_image_may_be_asked_everything(training_model: GLIPv2) -> None:
    """A list of names, a question and two captions to learn, of the same image."""
    everything = {
        **detection_input(),
        "question": "is there a dog?",
        "answers": {"yes": 1.0},
        "target_captions": ["a dog", "two dogs on a mat"],
    }
    image = everything["image"]
    losses = training_model([everything])
    question = question_input(answers={"yes": 1.0}, image=image)
    captions = [caption_input(c, image=image) for c in everything["target_captions"]]
    expected = training_model([detection_input(), question, *captions])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])


def test_further_texts_of_an_image_are_worth_what_they_are_alone(training_model: GLIPv2) -> None:
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


def test_what_is_wrong_with_a_further_text_is_named(training_model: GLIPv2) -> None:
    further = {"question": " ", "question_id": 8, "file_name": "8.jpg"}
    with pytest.raises(ValueError, match=r"question 8 of image '8\.jpg'.*no words"):
        training_model([question_input(more=[further])])


def test_regions_need_a_detector_that_can_be_asked_for_them() -> None:
    model = tiny_model(*ANSWERING, *REGIONS)
    parts = {name: getattr(model, name) for name in ("backbone", "language_backbone", "fused_head")}
    with pytest.raises(ValueError, match=r"REGION_READER.*Identity has no judge\(\) and match\(\)"):
        GLIPv2(
            **parts,
            proposal_generator=torch.nn.Identity(),
            tokenizer=model.tokenizer,
            input_prompts=model.input_prompts,
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
            answer=model.answer,
            region_reader=model.region_reader,
        )


def test_a_grounded_question_is_read_once_with_its_answer_hidden(
    training_model: GLIPv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    tokenize = training_model.tokenizer.__call__
    monkeypatch.setattr(
        type(training_model.tokenizer),
        "__call__",
        lambda _, prompts: texts.append([p.text for p in prompts]) or tokenize(prompts),
    )
    losses = training_model([grounded_question_input()])
    # And once the model looks for any thing, where it reads regions.
    search = [["an object"]] if training_model.region_reader is not None else []
    assert texts == [[f"{GROUNDED} [MASK]"], *search]
    assert all(losses[name] > 0 for name in (*GROUNDING, "loss_answer"))


def test_the_answers_box_belongs_to_the_hidden_word(training_model: GLIPv2) -> None:
    tasks = training_model.tasks.for_training([grounded_question_input()])
    (text,) = tasks.to_find
    assert text.prompt.phrases == ["the mat", "[MASK]"]
    assert tasks.gt_instances[0].gt_classes.tolist() == list(text.prompt.classes)
    assert tasks.grounded_questions == [0] and tasks.answers == [{"dog": 1.0}]


def test_finding_its_phrases_does_not_change_what_a_question_is_worth(
    training_model: GLIPv2,
) -> None:
    x = grounded_question_input()
    bare = question_input(GROUNDED, image=x["image"], answers=x["answers"])
    torch.testing.assert_close(
        training_model([x])["loss_answer"], training_model([bare])["loss_answer"]
    )


def test_words_of_questions_are_not_hidden() -> None:
    model = tiny_model(*TEXT_TASKS, "MODEL.MLM.WEIGHT", 1.0, "MODEL.MLM.PROB", 1.0).train()
    losses = model([grounded_question_input(), question_input()])
    assert losses["loss_mlm"] == 0


@pytest.mark.parametrize("regions", [(), REGIONS], ids=["maps", "regions"])
def test_both_losses_learn_from_the_image(regions: tuple) -> None:
    model = tiny_model(*TEXT_TASKS, *regions).train()
    losses = model([question_input(), caption_input()])
    for name in ("loss_answer", "loss_caption"):
        part = next(p for n, p in model.backbone.named_parameters() if "fpn_lateral3.weight" in n)
        (gradient,) = torch.autograd.grad(losses[name], part, retain_graph=True)
        assert gradient.any()


@pytest.mark.parametrize("regions", [(), REGIONS, NAMED], ids=["maps", "regions", "named"])
def test_bfloat16_autocast_gives_finite_losses_in_float32(regions: tuple) -> None:
    model = tiny_model(*TEXT_TASKS, *regions).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([question_input(), caption_input(), grounded_question_input()])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_answer"].dtype == losses["loss_caption"].dtype == torch.float32


# Inference.


def test_results_of_a_mixed_batch_are_those_of_separate_ones(model: GLIPv2) -> None:
    inputs = [
        asked(classes=["cat", "dog"]),
        asked(question="is there a dog?"),
        asked(describe=True),
        asked(question="how many dogs are there?", classes=["cat"], describe=True),
    ]
    for ours, x in zip(answer(model, *inputs), inputs, strict=True):
        assert_same(ours, answer(model, x)[0])


def test_inputs_of_one_image_tensor_get_what_they_would_get_alone(model: GLIPv2) -> None:
    image, another = random_image(), random_image(seed=1)
    inputs = [
        asked(image=image, question="is there a dog?"),
        asked(image=another, classes=["cat", "dog"]),
        asked(image=image, classes=["cat", "dog"]),
        asked(image=another, describe=True),
        asked(image=image, describe=True),
        asked(image=image, question="how many dogs are there?"),
    ]
    for ours, x in zip(answer(model, *inputs), inputs, strict=True):
        assert_same(ours, answer(model, x)[0])


def test_one_image_tensor_is_read_once(model: GLIPv2) -> None:
    sizes = []
    handle = model.backbone.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    image = random_image()
    answer(model, asked(image=image, question="is there a dog?"), asked(image=image, describe=True))
    handle.remove()
    assert sizes == [1]


def test_what_is_not_asked_is_not_done(model: GLIPv2) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("boxes were looked for")

    handle = model.proposal_generator.register_forward_pre_hook(refuse)
    said = answer(model, asked(question="is there a dog?"), asked(describe=True))
    handle.remove()
    assert [x.keys() for x in said] == [{"answer", "answer_score"}, {"caption"}]
    assert answer(model, asked(classes=["cat"]))[0].keys() == {"instances"}


def test_the_backbone_runs_once_whatever_is_asked(model: GLIPv2) -> None:
    calls = []
    handle = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    answer(model, asked(question="what is on the mat?", ground=True), asked(describe=True))
    handle.remove()
    assert len(calls) == 1


def test_the_answer_is_one_of_the_list_and_its_score_a_probability(model: GLIPv2) -> None:
    (said,) = answer(model, asked(question="is there a dog?"))
    assert said["answer"] in ANSWERS and 0 < said["answer_score"] < 1


def test_an_image_is_searched_once_for_all_that_is_said_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(*TEXT_TASKS, *REGIONS)
    finder, found = model.region_reader.finder, []
    monkeypatch.setattr(
        model.region_reader, "finder", lambda *args: found.append(1) or finder(*args)
    )
    shared = random_image(seed=0)
    both = asked(question="is there a dog?", describe=GenerationConfig(beam_size=1), image=shared)
    answer(model, both, asked(describe=GenerationConfig(beam_size=2), image=shared))
    assert len(found) == 1


def test_answers_to_choose_from_that_were_never_learned() -> None:
    model = tiny_model(*TEXT_TASKS, "MODEL.ANSWER.SCORE", "words")
    choices = ["a purple elephant", "nothing"]
    (said,) = answer(model, asked(question="what is it?", choices=choices))
    assert said["answer"] in choices


def test_another_image_gets_another_score_and_caption_scores(model: GLIPv2) -> None:
    scores = [
        answer(model, asked(question="is there a dog?", image=random_image(seed=seed)))[0]
        for seed in (0, 1)
    ]
    assert scores[0]["answer_score"] != scores[1]["answer_score"]


def caption_hidden(model: GLIPv2, x: dict, caption: str) -> torch.Tensor:
    """(1, T, D), the whole caption read at once."""
    return read_at_once(model, x, caption)[0]


def read_at_once(
    model: GLIPv2, x: dict, caption: str
) -> tuple[torch.Tensor, torch.Tensor, Regions | None]:
    """(1, T, D) and (1, T) ids of a caption, and the regions of its image."""
    images = model.preprocess_image([x])
    features = model.backbone(images.tensor)
    reading = read_image(model, features, [Asked(0, Prompt(caption, (), ()))], causal=True)
    (regions,) = find_regions(model, images, features, [[0]])
    return with_regions(model, reading.language, regions).hidden, reading.tokens.input_ids, regions


@pytest.mark.parametrize(
    "text", [(), PHRASES, REGIONS], ids=["bert", "phrases", "bert and regions"]
)
@torch.no_grad()
def test_cached_states_equal_the_computation_without_a_cache(text: tuple) -> None:
    model = tiny_model(*TEXT_TASKS, *text, "MODEL.FUSED_HEAD.NUM_BLOCKS", 3)
    caption = "a small dog on a mat"
    whole = caption_hidden(model, asked(), caption)
    ids = torch.tensor([[101, *model.tokenizer.pieces([caption])[0], 102]])
    images = model.preprocess_image([asked()])
    features = model.backbone(images.tensor)
    (regions,) = find_regions(model, images, features, [[0]])
    reader = caption_reader(model, features, [0], regions)
    in_steps = torch.cat([reader.read(column) for column in ids.split(1, dim=1)], dim=1)
    torch.testing.assert_close(in_steps, whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_beams_that_changed_places_go_on_as_if_all_were_read_anew(model: GLIPv2) -> None:
    inputs = [asked(image=random_image(seed=seed)) for seed in (0, 1)]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    (regions,) = find_regions(model, images, features, [[0, 1]])
    reader = caption_reader(model, features, [0, 1], regions)
    begun = ["a dog on", "the cat is", "a small mat", "red is a", "the dog is", "no cat on"]
    reader.read(torch.tensor([[101, *ids] for ids in model.tokenizer.pieces(begun)]))
    rows = [2, 0, 0, 5, 3, 5]
    reader.reorder(torch.tensor(rows))
    following = ["red", "mat", "dog", "a", "red", "cat"]
    last = reader.read(torch.tensor(model.tokenizer.pieces(following)))[:, -1]
    ours = model.caption.log_probs(last, reader.written, reader.regions)
    for i, (row, word) in enumerate(zip(rows, following, strict=True)):
        hidden, ids, regions = read_at_once(model, inputs[i // 3], f"{begun[row]} {word}")
        # The last is [SEP].
        expected = model.caption.log_probs(hidden[:, -2], ids[:, :-1], regions)
        torch.testing.assert_close(ours[i : i + 1], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_later_word_changes_nothing_before_it_and_the_image_everything(model: GLIPv2) -> None:
    image, another = (asked(image=random_image(seed=seed)) for seed in (0, 1))
    hidden = caption_hidden(model, image, "a dog on a mat")
    ends_otherwise = caption_hidden(model, image, "a dog on a car")
    assert torch.equal(hidden[:, :5], ends_otherwise[:, :5])
    assert not torch.allclose(hidden[:, 5:], ends_otherwise[:, 5:])
    elsewhere = caption_hidden(model, another, "a dog on a mat")
    assert (hidden - elsewhere).abs().amax(dim=-1).min() > 1e-6


@torch.no_grad()
def test_a_beam_of_one_writes_what_reading_everything_anew_writes(model: GLIPv2) -> None:
    x = asked(describe=GenerationConfig(beam_size=1, max_length=6, prefix="a dog"))
    images = model.preprocess_image([x])
    features = model.backbone(images.tensor)
    (regions,) = find_regions(model, images, features, [[0]])
    written = model.tokenizer.pieces(["a dog"])[0]
    while len(written) < 6:
        ids = torch.tensor([[101, *written]])
        tokens = TokenBatch(ids, torch.ones_like(ids).bool(), (), (), (), causal=True)
        _, words = model.fused_head(features, model.language_backbone(tokens))
        words = with_regions(model, words, regions)
        logits = model.caption.log_probs(words.hidden[:, -1], ids, regions)[0]
        logits[[i for i in model.tokenizer.special_ids if i != 102]] = -torch.inf
        if logits.argmax() == 102:
            break
        written.append(int(logits.argmax()))
    assert answer(model, x)[0]["caption"] == model.tokenizer.text_of(written)


@pytest.mark.parametrize("prefix", ["🐱", "a [SEP] cat"])
def test_a_prefix_that_is_no_text_is_refused(prefix: str, model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="is no word to the tokenizer"):
        answer(model, asked(describe=GenerationConfig(beam_size=1, prefix=prefix)))


def test_captions_keep_their_lengths_and_prefix(model: GLIPv2) -> None:
    how = GenerationConfig(beam_size=3, min_length=4, max_length=5, prefix="a dog")
    (said,) = answer(model, asked(describe=how))
    assert said["caption"].startswith("a dog")


@pytest.mark.parametrize("ground_by", ["mask", "words"])
def test_the_answer_and_the_phrases_of_a_question_are_found(
    ground_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(*TEXT_TASKS, *ALL, "MODEL.ANSWER.GROUND_BY", ground_by)
    asked_texts = []
    read = model.read
    monkeypatch.setattr(
        model, "read", lambda f, prompts: asked_texts.extend(prompts) or read(f, prompts)
    )
    (said,) = answer(model, asked(question=f"{GROUNDED} ", ground=True, choices=["dog"]))
    assert said["phrases"] == ["the mat", "dog"]
    assert said["prompt"].text == f"{GROUNDED} {said['answer']}"
    assert set(said["instances"].pred_classes.tolist()) == {0, 1}
    shown = "[MASK]" if ground_by == "mask" else said["answer"]
    assert [prompt.text for prompt in asked_texts] == [f"{GROUNDED} {shown}"]


@pytest.mark.parametrize("answer_text", ["no", "2"])
@pytest.mark.parametrize(
    ("ground_by", "question", "phrases"),
    [
        ("words", "is the dog here?", ["the dog"]),
        # With nothing else to find, and by the place of the answer, the answer is found.
        ("words", "is it here?", ["{answer}"]),
        ("mask", "is the dog here?", ["the dog", "{answer}"]),
    ],
)
def test_a_yes_no_or_number_is_not_found_by_its_words(
    ground_by: str, question: str, phrases: list[str], answer_text: str
) -> None:
    model = tiny_model(*TEXT_TASKS, *ALL, "MODEL.ANSWER.GROUND_BY", ground_by)
    said = {"answer": answer_text}
    prompt = model.tasks.said_with_phrases(asked(question=question, ground=True), said)
    assert prompt.text == f"{question} {answer_text}"
    assert prompt.phrases == [text.format(answer=answer_text) for text in phrases]


def test_an_answer_that_a_prompt_has_no_room_for_is_found_by_its_place(model: GLIPv2) -> None:
    question = " ".join(["dog"] * 253)
    (said,) = answer(model, asked(question=question, ground=True, choices=["dog"]))
    assert said["phrases"][-1] == said["answer"]


def test_finding_does_not_change_the_answer(model: GLIPv2) -> None:
    plain, grounded = (
        answer(model, asked(question=GROUNDED, ground=ground))[0] for ground in (False, True)
    )
    assert_same(plain, {key: grounded[key] for key in plain})


def test_the_phrases_of_a_description_are_found(model: GLIPv2) -> None:
    how = GenerationConfig(beam_size=1, max_length=6, prefix="a dog on the mat")
    (said,) = answer(model, asked(describe=how, ground=True))
    assert said["prompt"].text == said["caption"]
    assert said["phrases"][0] == "a dog"
    assert set(said["instances"].pred_classes.tolist()) == set(range(len(said["phrases"])))


def test_bfloat16_autocast_answers_and_describes(model: GLIPv2) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (said,) = answer(
            model, asked(question=GROUNDED, describe=GenerationConfig(3, max_length=4))
        )
    assert 0 < said["answer_score"] < 1 and said["caption"]


def test_evaluation_inputs_are_described() -> None:
    """Those of a data set of captions, which have the captions of people."""
    model = tiny_model(*TEXT_TASKS)
    (said,) = answer(model, caption_input())
    assert said.keys() == {"caption"}


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, r"question 7 of image '7.jpg': the question ' ' has no words"),
        ({"question": None}, "the question None has no words"),
        ({"question": "why " * 260}, "question 7 of image '7.jpg'.*263 tokens.*limit is 256"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_question_that_cannot_be_asked_is_named(
    change: dict, message: str, training: bool, model: GLIPv2
) -> None:
    model = tiny_model(*TEXT_TASKS).train() if training else model
    with pytest.raises(ValueError, match=message):
        model([question_input(**change)])


@pytest.mark.parametrize("choices", [[], "yes", ["yes", "Yes."], ["yes", " "]])
def test_choices_that_are_no_list_of_answers_are_named_with_their_question(
    choices: object, model: GLIPv2
) -> None:
    with pytest.raises(ValueError, match=r"question 7 of image '7.jpg': the choices: "):
        answer(model, asked(question="is it?"), question_input(choices=choices))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"answers": {"yes": 1.0}, "file_name": "3.jpg"}, "'3.jpg' has answers, but no 'question'"),
        ({"file_name": "3.jpg"}, "'3.jpg' has nothing to learn"),
        ({"question": "is it?", "file_name": "3.jpg"}, "'3.jpg' has no 'answers'"),
        ({"target_captions": [], "file_name": "3.jpg"}, r"'3.jpg'.*\[\] is no list of captions"),
        ({"target_captions": "a dog"}, "'a dog' is no list of captions"),
        ({"target_captions": ["a dog", " "]}, "the caption ' ' has no words"),
        ({"target_captions": ["a dog", None]}, "the caption None has no words"),
    ],
)
def test_a_record_without_something_to_learn_is_named(x: dict, message: str) -> None:
    model = tiny_model(*TEXT_TASKS).train()
    with pytest.raises(ValueError, match=message):
        model([question_input(), {"image": random_image(), **x}])


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("x", "message"),
    [(question_input(), "MODEL.ANSWER.WEIGHT"), (caption_input(), "MODEL.CAPTION.WEIGHT")],
)
def test_a_model_without_the_head_says_what_to_set(x: dict, message: str, training: bool) -> None:
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
def test_only_one_text_that_is_said_can_be_found(fields: dict, model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="'ground' finds the phrases of one"):
        answer(model, asked(ground=True, **fields))


@pytest.mark.parametrize("name", ["DynamicHead", "ImageFusedDynamicHead"])
@pytest.mark.parametrize("opts", [ANSWERING, DESCRIBING], ids=["answers", "captions"])
def test_words_that_do_not_read_the_image_have_nothing_to_say(name: str, opts: tuple) -> None:
    with pytest.raises(ValueError, match=f"{name} have not"):
        tiny_model(*opts, "MODEL.FUSED_HEAD.NAME", name)


def test_more_beams_than_words_are_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match="BEAM_SIZE.*30522 words"):
        tiny_model(*TEXT_TASKS, "MODEL.CAPTION.BEAM_SIZE", 30523)


def test_an_unknown_way_to_ground_is_refused() -> None:
    with pytest.raises(ValueError, match="MODEL.ANSWER.GROUND_BY is 'guess'"):
        tiny_model("MODEL.ANSWER.GROUND_BY", "guess")


def test_a_caption_longer_than_a_prompt_is_cut_in_training() -> None:
    model = tiny_model(*TEXT_TASKS).train()
    tasks = model.tasks.for_training([caption_input("dog " * 300)])
    assert model.tokenizer([tasks.captions[0].prompt]).input_ids.shape == (1, 256)


def test_a_stand_in_has_no_boxes(model: GLIPv2) -> None:
    tasks = model.tasks.for_training([question_input()])
    assert tasks.finds_nothing and len(tasks.gt_instances[0]) == 0
    with_boxes = model.tasks.for_training([question_input(), training_input([], [], classes=["a"])])
    assert not with_boxes.finds_nothing
    assert replace(with_boxes.to_find[0], prompt=None).image == 1
