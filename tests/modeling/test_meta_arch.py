"""Detection and training through the whole model."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from helpers.models import random_image, tiny_cfg, tiny_model, training_input

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.heads import GroundingRPN
from glipv2_d2.structures import DensePredictions, FusedFeatures
from glipv2_d2.text.prompts import class_prompt

# Every candidate passes, so that random weights give detections to compare.
ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 1000)
NAMES = ["cat", "traffic light", "bat_(animal)", "café", "dog"]


@pytest.fixture(scope="module")
def model() -> GLIPv2:
    return tiny_model(*ALL)


def detect(model: GLIPv2, *inputs: dict) -> list:
    with torch.no_grad():
        return [result["instances"] for result in model(list(inputs))]


def scores_by_name(model: GLIPv2, names: list[str]) -> dict[str, torch.Tensor]:
    """The best score of every name of a list on one image."""
    found = detect(model, {"image": random_image(), "classes": names})[0]
    return {name: found.scores[found.pred_classes == i].max() for i, name in enumerate(names)}


def assert_same_instances(ours, expected, atol: float = 1e-5) -> None:
    assert len(ours) == len(expected)
    torch.testing.assert_close(ours.scores, expected.scores, atol=atol, rtol=0)
    assert torch.equal(ours.pred_classes, expected.pred_classes)
    torch.testing.assert_close(
        ours.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0
    )


def test_images_of_a_batch_may_have_different_class_names(model: GLIPv2) -> None:
    first = {"image": random_image(seed=1), "classes": ["cat", "dog"]}
    second = {"image": random_image(seed=2), "classes": ["traffic light", "cat", "café", "bat"]}
    together = detect(model, first, second)
    assert_same_instances(together[0], detect(model, first)[0])
    assert_same_instances(together[1], detect(model, second)[0])


def test_scores_of_separately_encoded_names_do_not_depend_on_their_order() -> None:
    """Phrases are encoded one by one."""
    model = tiny_model(
        *ALL,
        *("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
        *("MODEL.GROUNDING.LOG_SCALE", -2.0),  # random weights give similar scores to all names
    )
    scores = scores_by_name(model, NAMES)
    shuffled = scores_by_name(model, NAMES[::-1])
    assert max(scores.values()) - min(scores.values()) > 1e-3, "the names have different scores"
    for name in NAMES:
        torch.testing.assert_close(scores[name], shuffled[name], atol=1e-5, rtol=0)


def test_chunks_have_the_detections_of_separate_inputs(model: GLIPv2) -> None:
    chunked = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 2, "TEST.DETECTIONS_PER_IMAGE", -1)
    image = random_image()
    found = detect(chunked, {"image": image, "classes": NAMES})[0]
    for start in range(0, len(NAMES), 2):
        alone = detect(model, {"image": image, "classes": NAMES[start : start + 2]})[0]
        of_chunk = (found.pred_classes >= start) & (found.pred_classes < start + 2)
        part = found[of_chunk]
        part.pred_classes = part.pred_classes - start
        assert_same_instances(part, alone)


def test_the_backbone_runs_once_for_all_chunks() -> None:
    chunked = tiny_model("MODEL.PROMPT.MAX_CLASSES", 1)
    calls = []
    chunked.backbone.register_forward_hook(lambda *_: calls.append(1))
    detect(chunked, {"image": random_image(), "classes": NAMES})
    assert len(calls) == 1


def test_the_language_backbone_runs_once_for_a_prompt_across_images() -> None:
    model = tiny_model()
    calls = []
    model.language_backbone.register_forward_hook(lambda *_: calls.append(1))
    for seed in range(3):
        detect(model, {"image": random_image(seed=seed), "classes": NAMES})
    assert len(calls) == 1


def test_lvis_is_encoded_in_31_prompts_with_its_own_class_indices() -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 40, "TEST.DETECTIONS_PER_IMAGE", -1)
    prompts = []
    model.fused_head.register_forward_hook(lambda *_: prompts.append(1))
    names = [category["synonyms"][0] for category in LVIS_CATEGORIES]
    found = detect(model, {"image": random_image(32, 32), "classes": names})[0]
    assert len(prompts) == 31
    assert set(found.pred_classes.tolist()) == set(range(1203))


def test_a_list_may_have_one_name(model: GLIPv2) -> None:
    found = detect(model, {"image": random_image(), "classes": ["cat"]})[0]
    assert set(found.pred_classes.tolist()) == {0}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("classes", "message"), [("cat", "'cat'"), ([], "empty")])
def test_a_string_or_an_empty_list_of_class_names_is_an_error(
    classes: Any, message: str, training: bool
) -> None:
    """They must be used neither as single letters nor as a request for a dataset's class names."""
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    datasets = ("test_meta_arch_plain",)
    model = tiny_model("DATASETS.TEST", datasets, "DATASETS.TRAIN", datasets).train(training)
    with pytest.raises(ValueError, match=message):
        model([training_input([], [], classes=classes)])


def test_the_best_detections_of_several_prompts_are_kept() -> None:
    opts = [*ALL, "MODEL.PROMPT.MAX_CLASSES", 2]
    image = {"image": random_image(), "classes": NAMES}
    everything = detect(tiny_model(*opts, "TEST.DETECTIONS_PER_IMAGE", -1), image)[0]
    capped = detect(tiny_model(*opts, "TEST.DETECTIONS_PER_IMAGE", 7), image)[0]
    assert torch.equal(capped.scores, everything.scores.topk(7).values)


def test_a_duplicate_name_has_the_first_index(
    model: GLIPv2, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = detect(model, {"image": random_image(), "classes": ["cat", "dog", "cat"]})[0]
    assert set(found.pred_classes.tolist()) == {0, 1}
    assert "'cat'" in caplog.text


def test_results_have_the_requested_size(model: GLIPv2) -> None:
    small = detect(model, {"image": random_image(), "classes": NAMES})[0]
    large = detect(model, {"image": random_image(), "classes": NAMES, "height": 128, "width": 192})
    assert large[0].image_size == (128, 192)
    inclusive = torch.tensor([0, 0, 1, 1])
    scaled = (small.pred_boxes.tensor - inclusive) * torch.tensor([3.0, 2, 3, 2]) + inclusive
    torch.testing.assert_close(large[0].pred_boxes.tensor, scaled)


def test_a_caption_returns_its_phrases(model: GLIPv2) -> None:
    x = {"image": random_image(), "caption": "a cat on a mat", "phrases": [[[0, 5]], [[9, 14]]]}
    with torch.no_grad():
        result = model([x])[0]
    assert result["phrases"] == ["a cat", "a mat"]
    assert set(result["instances"].pred_classes.tolist()) == {0, 1}


def test_a_caption_without_phrases_has_no_detections_and_a_finite_loss(model: GLIPv2) -> None:
    x = training_input([], [], caption="an empty street", phrases=[])
    assert len(detect(model, x)[0]) == 0
    losses = tiny_model().train()([x])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_token"] > 0


def test_a_caption_beyond_the_token_limit_is_an_error(model: GLIPv2) -> None:
    x = {"image": random_image(), "caption": "cat " * 255, "phrases": [[[0, 3]]]}
    with pytest.raises(ValueError, match=r"257 tokens, the limit is 256"):
        model([x])


def test_a_missing_list_of_phrases_is_an_error(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="'a cat' has no 'phrases'"):
        model([{"image": random_image(), "caption": "a cat"}])


def test_inputs_without_class_names_have_those_of_the_test_datasets_metadata() -> None:
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    model = tiny_model(*ALL, "DATASETS.TEST", ("test_meta_arch_plain",))
    image = random_image()
    named = detect(model, {"image": image, "classes": ["cat", "dog"]})[0]
    assert_same_instances(detect(model, {"image": image})[0], named)


def test_training_inputs_without_class_names_have_those_of_the_metadata() -> None:
    """Inputs as Detectron2's own mapper makes them."""
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    model = tiny_model("DATASETS.TRAIN", ("test_meta_arch_plain",)).train()
    x = training_input([[5, 5, 50, 60]], [1])
    prompt, _ = model.query_builder.prompts.for_training(x)
    assert prompt.phrases == ["cat", "dog"]
    assert all(loss.isfinite() and loss > 0 for loss in model([x]).values())


def test_the_model_is_built_from_its_parts_by_keyword() -> None:
    """As LazyConfig does, without a config."""
    parts = GLIPv2.from_config(tiny_cfg())
    built = GLIPv2(**parts)
    assert built.state_dict().keys() == tiny_model().state_dict().keys()


def test_datasets_with_different_class_names_are_an_error() -> None:
    """An input does not name its dataset."""
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    MetadataCatalog.get("test_meta_arch_other").thing_classes = ["dog", "cat"]
    names = ("test_meta_arch_plain", "test_meta_arch_other")
    with pytest.raises(ValueError, match=r"test_meta_arch_other.*different class names"):
        tiny_model("DATASETS.TEST", names)([{"image": random_image()}])


def test_class_names_without_a_source_are_an_error_with_a_remedy(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty: pass class names"):
        model([{"image": random_image()}])


def test_a_training_step_has_gradients_for_every_trained_parameter() -> None:
    # Drop path would leave out whole blocks.
    model = tiny_model("MODEL.SWIN.DROP_PATH_RATE", 0.0).train()
    inputs = [
        training_input([[5, 5, 50, 60], [20, 10, 40, 30]], [0, 2], classes=NAMES),
        training_input([[8, 20, 60, 60]], [1], classes=["person", "red car"]),
    ]
    losses = model(inputs)
    assert set(losses) == {"loss_token", "loss_box", "loss_centerness"}
    sum(losses.values()).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The scales of the coarser levels have no gradients: all objects are on the finest level.
    assert still == {f"proposal_generator.level_scales.{level}" for level in (1, 2, 3, 4)}


def test_images_without_ground_truth_have_a_finite_loss() -> None:
    model = tiny_model().train()
    inputs = [training_input([], [], classes=NAMES), training_input([], [], classes=NAMES)]
    losses = model(inputs)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert losses["loss_token"] > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.FUSED_HEAD.NAME", "FusedDynamicHead"),
        ("MODEL.FUSED_HEAD.NAME", "DynamicHead"),
        ("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
    ],
)
def test_every_trained_parameter_gets_a_gradient_without_ground_truth(opts: tuple) -> None:
    """Distributed training waits for all of them."""
    model = tiny_model(*opts).train()
    sum(model([training_input([], [], classes=NAMES)]).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("max_tokens", "last"), [(7, 1.0), (8, 0.0)])
def test_background_has_a_token_if_a_prompt_fills_the_token_limit(
    max_tokens: int, last: float
) -> None:
    model = tiny_model("MODEL.PROMPT.MAX_TOKENS", max_tokens)
    tokens = model.query_builder.tokenizer([class_prompt(["cat", "dog", "cow"])])
    assert tokens.input_ids.shape == (1, 7)
    anchors = model.proposal_generator.anchor_generator([torch.zeros(1, 1, 4, 4)] * 5)
    ground_truth = [training_input([], [])["instances"]]
    targets = model.proposal_generator.match_anchors(anchors, tokens, ground_truth).token_targets
    assert targets[..., -1].unique().tolist() == [last]
    assert not targets[..., :-1].any()


def test_gt_classes_are_the_classes_of_the_prompt() -> None:
    """They do not depend on the order of its labels."""
    model = tiny_model(
        *("MODEL.FUSED_HEAD.FUSION_DROPOUT", 0.0, "MODEL.FUSED_HEAD.LANGUAGE_DROPOUT", 0.0),
        *("MODEL.FPN.DROP_BLOCK_PROB", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    ).train()
    model.language_backbone.eval()
    prompt = class_prompt(["dog", "cat"], classes=[7, 3])
    as_prompt = model([training_input([[5, 5, 50, 60]], [3], prompt=prompt)])
    as_list = model([training_input([[5, 5, 50, 60]], [1], classes=["dog", "cat"])])
    assert as_prompt["loss_token"].item() == pytest.approx(as_list["loss_token"].item())


def test_ground_truth_of_a_class_that_the_prompt_lacks_is_an_error() -> None:
    x = training_input([[5, 5, 50, 60]], [9], prompt=class_prompt(["dog", "cat"]))
    with pytest.raises(ValueError, match=r"gt_classes \[9\] are not in the prompt"):
        tiny_model().train()([x])


def test_a_long_list_is_trained_with_the_images_own_classes_first() -> None:
    names = [f"thing number {i}" for i in range(300)]
    model = tiny_model()
    x = training_input([[5, 5, 50, 60]], [250], classes=names)
    prompt, instances = model.query_builder.prompts.for_training(x)
    assert prompt.classes[0] == 250
    assert prompt.phrases[0] == "thing number 250"
    assert prompt.num_labels > 20
    assert instances.gt_classes.tolist() == [250]


def test_boxes_of_classes_beyond_the_token_limit_are_dropped_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"thing number {i}" for i in range(300)]
    model = tiny_model().train()
    x = training_input([[5, 5, 50, 60]] * 150, list(range(150)), classes=names)
    prompt, instances = model.query_builder.prompts.for_training(x)
    assert 0 < len(instances) < 150
    assert set(instances.gt_classes.tolist()) == set(prompt.classes)
    assert all(loss.isfinite() for loss in model([x]).values())
    assert caplog.text.count("do not fit a prompt of 256 tokens") == 1


def test_a_class_out_of_range_is_an_error() -> None:
    names = [f"thing number {i}" for i in range(300)]
    with pytest.raises(
        ValueError, match=r"gt_classes \[300\] are out of range for 300 class names"
    ):
        tiny_model().train()([training_input([[5, 5, 50, 60]], [300], classes=names)])


def test_max_classes_does_not_limit_training_prompts() -> None:
    model = tiny_model("MODEL.PROMPT.MAX_CLASSES", 2)
    prompt, _ = model.query_builder.prompts.for_training(training_input([], [], classes=NAMES))
    assert prompt.phrases == ["cat", "traffic light", "bat ", "café", "dog"]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_bfloat16_autocast_gives_finite_results(training: bool) -> None:
    model = tiny_model(*ALL).train(training)
    inputs = [training_input([[5, 5, 50, 60]], [0], classes=NAMES[:k]) for k in (1, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = model(inputs)
    if training:
        assert all(loss.isfinite() for loss in results.values())
    else:
        assert all(r["instances"].scores.isfinite().all() for r in results)
        assert all(len(r["instances"]) for r in results)


def test_a_part_is_selected_by_its_name() -> None:
    unfused = tiny_model("MODEL.FUSED_HEAD.NAME", "DynamicHead")
    assert type(unfused.fused_head).__name__ == "DynamicHead"
    with pytest.raises(KeyError, match="NoSuchHead"):
        GLIPv2.from_config(tiny_cfg("MODEL.FUSED_HEAD.NAME", "NoSuchHead"))


@PROPOSAL_GENERATOR_REGISTRY.register()
class SilentRPN(GroundingRPN):
    """Scores every label with almost zero."""

    def predict(self, fused: FusedFeatures) -> DensePredictions:
        predictions = super().predict(fused)
        for logits in predictions.token_logits_per_level:
            logits.fill_(-100)
        return predictions


def test_another_proposal_generator_is_selected_by_its_name() -> None:
    model = tiny_model("MODEL.PROPOSAL_GENERATOR.NAME", "SilentRPN")
    assert len(detect(model, {"image": random_image(), "classes": NAMES})[0]) == 0


@pytest.mark.parametrize("fused", [True, False])
def test_regions_are_scored_against_the_text_that_the_config_selects(fused: bool) -> None:
    model = tiny_model("MODEL.GROUNDING.SCORE_FUSED_TEXT", fused)
    x = training_input([[5, 5, 50, 60]], [0], classes=["cat", "dog"])
    queries = model.query_builder.for_training([x])
    with torch.no_grad():
        tokens = model.tokenize(queries)
        text = model.encode_text(tokens)
        features = model.fuse(model.encode_images([x]), queries, tokens, text)
    assert torch.equal(features.region_text.hidden, features.text.hidden) is not fused
    assert torch.equal(features.region_text.hidden, features.fused_text.hidden) is fused


def test_the_constructor_takes_at_most_14_arguments() -> None:
    assert len(inspect.signature(GLIPv2.__init__).parameters) - 1 <= 14
