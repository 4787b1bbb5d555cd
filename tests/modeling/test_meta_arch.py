from __future__ import annotations

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
    """The best score of every name, asked together on one image."""
    found = detect(model, {"image": random_image(), "classes": names})[0]
    return {name: found.scores[found.pred_classes == i].max() for i, name in enumerate(names)}


def assert_same_instances(ours, expected, atol: float = 1e-5) -> None:
    assert len(ours) == len(expected)
    torch.testing.assert_close(ours.scores, expected.scores, atol=atol, rtol=0)
    assert torch.equal(ours.pred_classes, expected.pred_classes)
    torch.testing.assert_close(
        ours.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0
    )


def test_images_of_a_batch_may_ask_different_lists(model: GLIPv2) -> None:
    first = {"image": random_image(seed=1), "classes": ["cat", "dog"]}
    second = {"image": random_image(seed=2), "classes": ["traffic light", "cat", "café", "bat"]}
    together = detect(model, first, second)
    assert_same_instances(together[0], detect(model, first)[0])
    assert_same_instances(together[1], detect(model, second)[0])


def test_a_score_follows_its_name_through_every_order_of_the_list() -> None:
    """With phrases read one by one nothing knows the order, so nothing may depend on it."""
    model = tiny_model(
        *ALL,
        *("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
        *("MODEL.GROUNDING.LOG_SCALE", -2.0),  # random weights tell names apart a little, only
    )
    scores = scores_by_name(model, NAMES)
    shuffled = scores_by_name(model, NAMES[::-1])
    assert max(scores.values()) - min(scores.values()) > 1e-3, "the names are told apart"
    for name in NAMES:
        torch.testing.assert_close(scores[name], shuffled[name], atol=1e-5, rtol=0)


def test_chunks_give_what_separate_questions_give(model: GLIPv2) -> None:
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


def test_lvis_is_asked_in_31_prompts_under_its_own_numbers() -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 40, "TEST.DETECTIONS_PER_IMAGE", -1)
    asked = []
    model.fused_head.register_forward_hook(lambda *_: asked.append(1))
    names = [category["synonyms"][0] for category in LVIS_CATEGORIES]
    found = detect(model, {"image": random_image(32, 32), "classes": names})[0]
    assert len(asked) == 31
    assert set(found.pred_classes.tolist()) == set(range(1203))


def test_one_name_is_a_list(model: GLIPv2) -> None:
    found = detect(model, {"image": random_image(), "classes": ["cat"]})[0]
    assert set(found.pred_classes.tolist()) == {0}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("classes", "message"), [("cat", "'cat'"), ([], "empty")])
def test_a_text_or_an_empty_list_is_no_list_of_names(
    classes: Any, message: str, training: bool
) -> None:
    """Else the letters would be asked, or the names of some data set."""
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    datasets = ("test_meta_arch_plain",)
    model = tiny_model("DATASETS.TEST", datasets, "DATASETS.TRAIN", datasets).train(training)
    with pytest.raises(ValueError, match=message):
        model([training_input([], [], classes=classes)])


def test_an_image_asked_several_prompts_keeps_its_best_detections() -> None:
    opts = [*ALL, "MODEL.PROMPT.MAX_CLASSES", 2]
    image = {"image": random_image(), "classes": NAMES}
    everything = detect(tiny_model(*opts, "TEST.DETECTIONS_PER_IMAGE", -1), image)[0]
    capped = detect(tiny_model(*opts, "TEST.DETECTIONS_PER_IMAGE", 7), image)[0]
    assert torch.equal(capped.scores, everything.scores.topk(7).values)


def test_a_duplicate_name_carries_the_first_index(
    model: GLIPv2, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = detect(model, {"image": random_image(), "classes": ["cat", "dog", "cat"]})[0]
    assert set(found.pred_classes.tolist()) == {0, 1}
    assert "'cat'" in caplog.text


def test_results_are_in_pixels_of_the_wanted_size(model: GLIPv2) -> None:
    small = detect(model, {"image": random_image(), "classes": NAMES})[0]
    large = detect(model, {"image": random_image(), "classes": NAMES, "height": 128, "width": 192})
    assert large[0].image_size == (128, 192)
    inclusive = torch.tensor([0, 0, 1, 1])
    scaled = (small.pred_boxes.tensor - inclusive) * torch.tensor([3.0, 2, 3, 2]) + inclusive
    torch.testing.assert_close(large[0].pred_boxes.tensor, scaled)


def test_a_caption_gives_its_phrases(model: GLIPv2) -> None:
    x = {"image": random_image(), "caption": "a cat on a mat", "phrases": [[[0, 5]], [[9, 14]]]}
    with torch.no_grad():
        result = model([x])[0]
    assert result["phrases"] == ["a cat", "a mat"]
    assert set(result["instances"].pred_classes.tolist()) == {0, 1}


def test_a_caption_that_names_nothing_finds_nothing_and_trains(model: GLIPv2) -> None:
    x = training_input([], [], caption="an empty street", phrases=[])
    assert len(detect(model, x)[0]) == 0
    losses = tiny_model().train()([x])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_token"] > 0


def test_a_caption_longer_than_the_limit_is_an_error_with_both_numbers(model: GLIPv2) -> None:
    x = {"image": random_image(), "caption": "cat " * 255, "phrases": [[[0, 3]]]}
    with pytest.raises(ValueError, match=r"257 tokens, the limit is 256"):
        model([x])


def test_a_caption_without_phrases_says_what_to_give(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="'a cat' has no 'phrases'"):
        model([{"image": random_image(), "caption": "a cat"}])


def test_a_plain_data_set_is_asked_its_metadatas_names() -> None:
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    model = tiny_model(*ALL, "DATASETS.TEST", ("test_meta_arch_plain",))
    image = random_image()
    named = detect(model, {"image": image, "classes": ["cat", "dog"]})[0]
    assert_same_instances(detect(model, {"image": image})[0], named)


def test_a_plain_data_set_trains_on_its_metadatas_names() -> None:
    """Inputs as Detectron2's own mapper makes them."""
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    model = tiny_model("DATASETS.TRAIN", ("test_meta_arch_plain",)).train()
    x = training_input([[5, 5, 50, 60]], [1])
    prompt, _ = model.input_prompts.for_training(x)
    assert prompt.phrases == ["cat", "dog"]
    assert all(loss.isfinite() and loss > 0 for loss in model([x]).values())


def test_the_model_is_built_from_its_parts_by_keyword() -> None:
    """As LazyConfig does, without a config."""
    parts = GLIPv2.from_config(tiny_cfg())
    built = GLIPv2(**parts)
    assert built.state_dict().keys() == tiny_model().state_dict().keys()


def test_data_sets_of_other_names_are_no_source_of_names() -> None:
    """An input does not tell its data set: the second one's would be labelled with the first's."""
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    MetadataCatalog.get("test_meta_arch_other").thing_classes = ["dog", "cat"]
    names = ("test_meta_arch_plain", "test_meta_arch_other")
    with pytest.raises(ValueError, match=r"test_meta_arch_other.*different names"):
        tiny_model("DATASETS.TEST", names)([{"image": random_image()}])


def test_no_names_at_all_is_an_error_with_a_remedy(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty: say what to look for"):
        model([{"image": random_image()}])


def test_a_training_step_moves_every_trained_parameter() -> None:
    # A block that drop path leaves out for all images of a step rests in it.
    model = tiny_model("MODEL.SWIN.DROP_PATH_RATE", 0.0).train()
    inputs = [
        training_input([[5, 5, 50, 60], [20, 10, 40, 30]], [0, 2], classes=NAMES),
        training_input([[8, 20, 60, 60]], [1], classes=["person", "red car"]),
    ]
    losses = model(inputs)
    assert set(losses) == {"loss_token", "loss_box", "loss_centerness"}
    sum(losses.values()).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The box scale of a level learns from the objects of that level; these are all on the finest.
    assert still == {f"proposal_generator.level_scales.{level}" for level in (1, 2, 3, 4)}


def test_an_image_without_ground_truth_trains() -> None:
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
def test_no_object_is_a_token_where_a_prompt_fills_the_configs_limit(
    max_tokens: int, last: float
) -> None:
    model = tiny_model("MODEL.PROMPT.MAX_TOKENS", max_tokens)
    tokens = model.tokenizer([class_prompt(["cat", "dog", "cow"])])
    assert tokens.input_ids.shape == (1, 7)
    anchors = model.proposal_generator.anchor_generator([torch.zeros(1, 1, 4, 4)] * 5)
    ground_truth = [training_input([], [])["instances"]]
    targets = model.proposal_generator.label_anchors(anchors, tokens, ground_truth).token_targets
    assert targets[..., -1].unique().tolist() == [last]
    assert not targets[..., :-1].any()


def test_classes_of_a_prompt_name_the_ground_truth() -> None:
    """gt_classes are the caller's, whatever the prompt's order."""
    model = tiny_model(
        *("MODEL.FUSED_HEAD.FUSION_DROPOUT", 0.0, "MODEL.FUSED_HEAD.LANGUAGE_DROPOUT", 0.0),
        *("MODEL.FPN.DROP_BLOCK_PROB", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
    ).train()
    model.language_backbone.eval()
    prompt = class_prompt(["dog", "cat"], classes=[7, 3])
    as_prompt = model([training_input([[5, 5, 50, 60]], [3], prompt=prompt)])
    as_list = model([training_input([[5, 5, 50, 60]], [1], classes=["dog", "cat"])])
    assert as_prompt["loss_token"].item() == pytest.approx(as_list["loss_token"].item())


def test_ground_truth_that_is_not_asked_is_an_error() -> None:
    x = training_input([[5, 5, 50, 60]], [9], prompt=class_prompt(["dog", "cat"]))
    with pytest.raises(ValueError, match=r"gt_classes \[9\] are not in the prompt"):
        tiny_model().train()([x])


def test_a_long_list_trains_with_the_images_own_classes_first() -> None:
    names = [f"thing number {i}" for i in range(300)]
    model = tiny_model()
    x = training_input([[5, 5, 50, 60]], [250], classes=names)
    prompt, instances = model.input_prompts.for_training(x)
    assert prompt.classes[0] == 250
    assert prompt.phrases[0] == "thing number 250"
    assert prompt.num_labels > 20
    assert instances.gt_classes.tolist() == [250]


def test_boxes_whose_classes_do_not_fit_a_prompt_are_dropped_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"thing number {i}" for i in range(300)]
    model = tiny_model().train()
    x = training_input([[5, 5, 50, 60]] * 150, list(range(150)), classes=names)
    prompt, instances = model.input_prompts.for_training(x)
    assert 0 < len(instances) < 150
    assert set(instances.gt_classes.tolist()) == set(prompt.classes)
    assert all(loss.isfinite() for loss in model([x]).values())
    assert caplog.text.count("do not fit a prompt of 256 tokens") == 1


def test_a_class_outside_a_long_list_is_named() -> None:
    names = [f"thing number {i}" for i in range(300)]
    with pytest.raises(ValueError, match=r"gt_classes \[300\] do not index.* 300 names"):
        tiny_model().train()([training_input([[5, 5, 50, 60]], [300], classes=names)])


def test_the_limit_of_names_is_not_that_of_training() -> None:
    model = tiny_model("MODEL.PROMPT.MAX_CLASSES", 2)
    prompt, _ = model.input_prompts.for_training(training_input([], [], classes=NAMES))
    assert prompt.phrases == ["cat", "traffic light", "bat ", "café", "dog"]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_bfloat16_autocast_gives_finite_numbers(training: bool) -> None:
    model = tiny_model(*ALL).train(training)
    inputs = [training_input([[5, 5, 50, 60]], [0], classes=NAMES[:k]) for k in (1, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = model(inputs)
    if training:
        assert all(loss.isfinite() for loss in results.values())
    else:
        assert all(r["instances"].scores.isfinite().all() for r in results)
        assert all(len(r["instances"]) for r in results)


@pytest.mark.gpu
def test_float16_autocast_gives_finite_numbers_on_cuda() -> None:
    model = tiny_model(*ALL).cuda().train()
    inputs = [training_input([[5, 5, 50, 60]], [0], classes=NAMES[:k]) for k in (1, 5)]
    with torch.autocast("cuda", dtype=torch.float16):
        losses = model(inputs)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


def test_a_user_swaps_a_part_by_its_name() -> None:
    unfused = tiny_model("MODEL.FUSED_HEAD.NAME", "DynamicHead")
    assert type(unfused.fused_head).__name__ == "DynamicHead"
    with pytest.raises(KeyError, match="NoSuchHead"):
        GLIPv2.from_config(tiny_cfg("MODEL.FUSED_HEAD.NAME", "NoSuchHead"))


@PROPOSAL_GENERATOR_REGISTRY.register()
class SilentRPN(GroundingRPN):
    """Finds nothing sure enough."""

    def predict(self, *args: Any) -> Any:
        predictions = super().predict(*args)
        for logits in predictions.token_logits_per_level:
            logits.fill_(-100)
        return predictions


def test_another_proposal_generator_takes_the_place_by_its_name() -> None:
    model = tiny_model("MODEL.PROPOSAL_GENERATOR.NAME", "SilentRPN")
    assert len(detect(model, {"image": random_image(), "classes": NAMES})[0]) == 0


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("fused", [True, False])
def test_regions_are_scored_against_the_words_that_the_config_names(
    fused: bool, training: bool
) -> None:
    model = tiny_model("MODEL.GROUNDING.FUSED_WORDS", fused).train(training)
    seen = {}
    model.language_backbone.register_forward_hook(
        lambda _module, _args, out: seen.update(before=out.hidden)
    )
    model.proposal_generator.register_forward_pre_hook(
        lambda _module, args: seen.update(scored=args[2].hidden)
    )
    with torch.no_grad():
        model([training_input([[5, 5, 50, 60]], [0], classes=["cat", "dog"])])
    assert torch.equal(seen["scored"], seen["before"]) is not fused
