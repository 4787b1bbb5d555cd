"""Text tasks whose text attends to regions, with and without class names and pointer heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.masks import MASKS
from helpers.models import random_image
from helpers.shared_tests import shared_tests
from helpers.text_tasks import (
    ANSWERING,
    CAPTIONING,
    TEXT_TASKS,
    caption_input,
    detection_input,
    grounded_question_input,
    question_input,
)
from helpers.two_processes import DETERMINISTIC
from mini_models import NAMED, PHRASES, POINTERS, REGIONS, UNFUSED_TEXT, mini_model
from modeling import test_text_tasks
from modeling.test_text_tasks import (
    KEEP_ALL,
    LOCALIZATION_LOSSES,
    assert_decoding_in_steps_equals_the_whole_caption,
    assert_losses_are_finite_float32_under_autocast,
    inference_input,
    predict,
    without_gradient,
)

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import GenerationConfig, Prompt, Query, QueryKind
from glipv2_d2.text.prompts import demo_prompt

# The tests of the core that take a model, on the models of this file.
globals().update(shared_tests(test_text_tasks, "model", "training_model"))


@pytest.fixture(scope="module", params=[REGIONS, POINTERS], ids=["regions", "pointers"])
def model(request: pytest.FixtureRequest) -> GLIPv2:
    return mini_model(*TEXT_TASKS, *KEEP_ALL, *request.param)


@pytest.fixture(scope="module", params=[REGIONS, POINTERS], ids=["regions", "pointers"])
def training_model(request: pytest.FixtureRequest) -> GLIPv2:
    """Without dropout."""
    built = mini_model(*TEXT_TASKS, *DETERMINISTIC, *request.param).train()
    built.language_backbone.eval()
    return built


def test_text_tasks_add_only_their_own_weights_and_losses(training_model: GLIPv2) -> None:
    text = () if training_model.fused_head.score_fused_text else UNFUSED_TEXT
    plain = mini_model(*DETERMINISTIC, *text).train()
    plain.language_backbone.eval()
    added = training_model.state_dict().keys() - plain.state_dict().keys()
    assert added and all(name.startswith("text_tasks.") for name in added)
    losses, with_heads = plain([detection_input()]), training_model([detection_input()])
    assert losses.keys() == LOCALIZATION_LOSSES
    for name in LOCALIZATION_LOSSES:
        assert torch.equal(losses[name], with_heads[name])
    assert with_heads["loss_answer"] == with_heads["loss_caption"] == 0


def model_with_match_encoder(*opts: Any) -> GLIPv2:
    """A model whose questions depend on the region-word logits, as after training."""
    built = mini_model(*ANSWERING, *REGIONS, *opts)
    matches = built.text_tasks.region_encoder.matches
    for part in (matches.score, matches.region):
        torch.nn.init.normal_(part.weight)
    return built


def test_questions_train_the_region_word_score_if_they_attend_to_regions() -> None:
    models = (
        (model_with_match_encoder(*DETERMINISTIC), True),
        (mini_model(*ANSWERING, *DETERMINISTIC), False),
    )
    for model, is_trained in models:
        model.train()([question_input()])["loss_answer"].backward()
        gradient = model.proposal_generator.region_word.feature_score.projection.weight.grad
        assert (gradient is not None and bool(gradient.any())) == is_trained


def test_the_loss_of_a_question_with_matches_does_not_depend_on_the_batch() -> None:
    model = model_with_match_encoder(*DETERMINISTIC).train()
    model.language_backbone.eval()
    plain, grounded = question_input(), grounded_question_input()
    with torch.no_grad():
        losses = [float(model([x])["loss_answer"]) for x in (plain, grounded)]
        both = float(model([plain, grounded, detection_input()])["loss_answer"])
    assert both == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_class_logits_of_regions_are_their_region_word_logits(tmp_path: Path) -> None:
    names = ["a dog", "traffic light", "sea"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    opts = (
        *("MODEL.REGION_ENCODER.NAMES_FILE", str(tmp_path / "names.txt")),
        *("MODEL.GROUNDING.SCORE_FUSED_TEXT", False),
    )
    model = mini_model(*ANSWERING, *REGIONS, *PHRASES, *opts)
    query = Query(0, QueryKind.ANSWER, Prompt("what is it?", (), (), is_question=True))
    with torch.no_grad():
        features = model.encode_images([inference_input()])
        regions = model.text_tasks.encode_context(model, features, [query]).regions
        tokens = model.query_builder.tokenizer([demo_prompt(names)])
        text = model.language_backbone(tokens)
        logits = model.proposal_generator.region_word_logits(regions.fused_features, text)[0]
    first_tokens = [int(row.nonzero()[0]) for row in tokens.positive_maps[0]]
    torch.testing.assert_close(regions.class_logits[0], logits[:, first_tokens])


def test_class_names_of_regions_need_scores_against_unfused_text(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog")
    file = ("MODEL.REGION_ENCODER.NAMES_FILE", str(tmp_path / "names.txt"))
    with pytest.raises(
        ValueError, match=r"NAMES_FILE.*set MODEL\.GROUNDING\.SCORE_FUSED_TEXT to False"
    ):
        mini_model(*ANSWERING, *REGIONS, *file)


def test_a_pointer_caption_head_accepts_other_class_names_with_the_same_weights(
    tmp_path: Path,
) -> None:
    (tmp_path / "names.txt").write_text("zebra\ntennis racket")
    file = ("MODEL.REGION_ENCODER.NAMES_FILE", str(tmp_path / "names.txt"))
    model, other = mini_model(*CAPTIONING, *POINTERS), mini_model(*CAPTIONING, *POINTERS, *file)
    other.load_state_dict(model.state_dict())
    assert len(other.text_tasks.caption.pointer.name_tokens) == 2


def test_a_pointer_caption_head_without_class_names_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"uses the class names of regions: set .*MODEL\.REGION_ENCODER"
    ):
        mini_model(*CAPTIONING, *REGIONS, "MODEL.CAPTION.NAME", "PointerCaptionHead")


@pytest.mark.parametrize("x", [detection_input(), caption_input()], ids=["boxes", "caption"])
def test_every_parameter_of_a_captioning_model_gets_a_gradient(x: dict) -> None:
    assert without_gradient(mini_model(*CAPTIONING, *REGIONS).train(), x) == []


@pytest.mark.parametrize("masks", [(), MASKS], ids=["alone", "with masks"])
@pytest.mark.parametrize("text", [REGIONS, POINTERS], ids=["regions", "pointers"])
@pytest.mark.parametrize(
    "x",
    [detection_input(), question_input(), caption_input()],
    ids=["boxes", "question", "caption"],
)
def test_every_parameter_gets_a_gradient_from_every_task(
    x: dict, text: tuple, masks: tuple
) -> None:
    """Distributed training waits for all of them."""
    assert without_gradient(mini_model(*TEXT_TASKS, *text, *masks).train(), x) == []


def test_both_losses_have_gradients_in_the_projection_of_the_image() -> None:
    model = mini_model(*TEXT_TASKS, *REGIONS).train()
    losses = model([question_input(), caption_input()])
    for name in ("loss_answer", "loss_caption"):
        part = model.fused_head.input_projection.weight
        (gradient,) = torch.autograd.grad(losses[name], part, retain_graph=True)
        assert gradient.any()


@pytest.mark.parametrize("regions", [REGIONS, NAMED], ids=["regions", "named"])
def test_bfloat16_autocast_gives_finite_losses_in_float32(regions: tuple) -> None:
    assert_losses_are_finite_float32_under_autocast(mini_model(*TEXT_TASKS, *regions).train())


def test_decoding_with_a_cache_equals_encoding_the_whole_caption() -> None:
    assert_decoding_in_steps_equals_the_whole_caption(
        mini_model(*TEXT_TASKS, *REGIONS, "MODEL.FUSED_HEAD.NUM_BLOCKS", 3)
    )


def test_region_proposals_need_an_evidence_rpn() -> None:
    model = mini_model(*ANSWERING, *REGIONS)
    model.proposal_generator = torch.nn.Identity()
    with pytest.raises(TypeError, match="region proposals need an EvidenceRPN, not Identity"):
        predict(model, inference_input(question="is there a dog?"))


def test_the_regions_of_an_image_are_proposed_once_for_all_its_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mini_model(*TEXT_TASKS, *REGIONS)
    region_encoder = model.text_tasks.region_encoder
    proposer, calls = region_encoder.proposer, []

    def count(encoder: Any, features: Any) -> Any:
        calls.append(len(features.image_sizes))
        return proposer(encoder, features)

    monkeypatch.setattr(region_encoder, "proposer", count)
    shared = random_image(seed=0)
    predict(
        model,
        inference_input(
            question="is there a dog?", describe=GenerationConfig(beam_size=1), image=shared
        ),
        inference_input(describe=GenerationConfig(beam_size=2), image=shared),
    )
    assert calls == [1]


def test_no_regions_are_proposed_in_a_training_batch_without_text_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mini_model(*TEXT_TASKS, *REGIONS).train()
    monkeypatch.setattr(model.text_tasks.region_encoder, "proposer", None)
    losses = model([detection_input()])
    assert losses["loss_answer"] == losses["loss_caption"] == 0
