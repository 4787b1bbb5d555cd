from __future__ import annotations

import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from helpers.models import random_image, tiny_cfg, tiny_model, training_input

from glipv2_d2.modeling import GLIPv2
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
    model = tiny_model(*ALL, "MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone")
    scores = scores_by_name(model, NAMES)
    shuffled = scores_by_name(model, NAMES[::-1])
    assert len({round(score.item(), 4) for score in scores.values()}) == len(NAMES)
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


def test_a_caption_without_phrases_says_what_to_give(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match="'a cat' has no 'phrases'"):
        model([{"image": random_image(), "caption": "a cat"}])


def test_a_plain_data_set_is_asked_its_metadatas_names() -> None:
    MetadataCatalog.get("test_meta_arch_plain").thing_classes = ["cat", "dog"]
    model = tiny_model(*ALL, "DATASETS.TEST", ("test_meta_arch_plain",))
    image = random_image()
    named = detect(model, {"image": image, "classes": ["cat", "dog"]})[0]
    assert_same_instances(detect(model, {"image": image})[0], named)


def test_no_names_at_all_is_an_error_with_a_remedy(model: GLIPv2) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty: say what to look for"):
        model([{"image": random_image()}])


def test_a_training_step_moves_every_trained_parameter() -> None:
    model = tiny_model().train()
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
    prompt = model.input_prompts.for_training(x)
    assert prompt.classes[0] == 250
    assert prompt.phrases[0] == "thing number 250"
    assert prompt.num_labels > 20


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
