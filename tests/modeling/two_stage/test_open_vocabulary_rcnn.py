from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from helpers.models import random_image, training_input
from helpers.two_stage import CASCADE, PHRASES, two_stage_model
from torch import Tensor

from glipv2_d2.layers.checkpoint_prefixes import excluded_prefixes
from glipv2_d2.modeling.two_stage import OpenVocabularyRCNN, OpenVocabularyROIHeads
from glipv2_d2.structures import Prompt
from glipv2_d2.text.prompts import class_prompt

# Every (region, class) is a detection, so that random weights give something to compare.
ALL = (
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0),
    *("TEST.DETECTIONS_PER_IMAGE", -1, "MODEL.RPN.POST_NMS_TOPK_TEST", 5),
)
BOXES_ONLY = ("MODEL.MASK_ON", False)
NAMES = ["cat", "traffic light", "bat_(animal)", "café", "dog"]
KINDS = {"standard": (), "cascade": CASCADE}


def detect(model: OpenVocabularyRCNN, *inputs: dict) -> list[Instances]:
    with torch.no_grad():
        return [result["instances"] for result in model(list(inputs))]


def best_scores(found: Instances, names: list[str]) -> dict[str, float]:
    return {
        name: found.scores[found.pred_classes == c].max().item() for c, name in enumerate(names)
    }


def losses(model: OpenVocabularyRCNN, inputs: list[dict]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(inputs)


def with_masks(x: dict[str, Any], *, unknown: tuple[int, ...] = ()) -> dict[str, Any]:
    """Add masks of the upper half of each box, and arbitrary ones where they are unknown."""
    instances = x["instances"]
    masks = torch.zeros(len(instances), 64, 64, dtype=torch.bool)
    has_mask = torch.ones(len(instances), dtype=torch.bool)
    for i, box in enumerate(instances.gt_boxes.tensor.long().tolist()):
        x1, y1, x2, y2 = box
        masks[i, y1 : (y1 + y2) // 2, x1:x2] = True
    for i in unknown:
        masks[i], has_mask[i] = ~masks[i], False
    instances.gt_masks, instances.gt_has_mask = BitMasks(masks), has_mask
    return x


def street(**fields: Any) -> dict[str, Any]:
    fields = {"classes": ["cat", "traffic light", "dog"], **fields}
    return with_masks(training_input([[5, 5, 50, 60], [20, 10, 40, 30]], [0, 2], **fields))


@pytest.fixture(scope="module")
def model() -> OpenVocabularyRCNN:
    return two_stage_model(*ALL)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_the_order_of_class_names(kind: str) -> None:
    model = two_stage_model(*ALL, *BOXES_ONLY, *PHRASES, *KINDS[kind])
    x = {"image": random_image(), "classes": NAMES}
    (found,) = detect(model, x)
    (shuffled,) = detect(model, {**x, "classes": NAMES[::-1]})
    scores, expected = best_scores(shuffled, NAMES[::-1]), best_scores(found, NAMES)
    assert max(expected.values()) - min(expected.values()) > 1e-3, "scores differ between classes"
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_may_have_different_classes(kind: str) -> None:
    model = two_stage_model(*ALL, *KINDS[kind])
    first = {"image": random_image(seed=1), "classes": ["cat", "dog"]}
    second = {"image": random_image(seed=2), "classes": ["traffic light", "cat", "café", "bat"]}
    together = detect(model, first, second)
    for found, x in zip(together, (first, second), strict=True):
        (alone,) = detect(model, x)
        assert torch.equal(found.pred_classes, alone.pred_classes)
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            found.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3, rtol=0
        )
        assert (found.pred_masks != alone.pred_masks).float().mean() < 1e-3


def test_classes_of_all_prompts_share_one_softmax() -> None:
    opts = (*ALL, *BOXES_ONLY, *PHRASES)
    x = {"image": random_image(), "classes": NAMES}
    (whole,) = detect(two_stage_model(*opts), x)
    chunked_model = two_stage_model(*opts, "MODEL.PROMPT.MAX_CLASSES", 2)
    assert len(chunked_model.prompts.for_inference(x)) == 3
    (chunked,) = detect(chunked_model, x)
    assert best_scores(chunked, NAMES) == pytest.approx(best_scores(whole, NAMES), abs=1e-6)


def test_1203_classes_are_scored_together() -> None:
    names = [category["synonyms"][0] for category in LVIS_CATEGORIES]
    model = two_stage_model(
        *(*ALL, *BOXES_ONLY, *PHRASES, "MODEL.PROMPT.MAX_CLASSES", 40),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 1),
    )
    probs = []
    predictor = model.roi_heads.box_predictor
    predict_probs = predictor.predict_probs
    predictor.predict_probs = lambda *args: probs.append(predict_probs(*args)) or probs[-1]
    (found,) = detect(model, {"image": random_image(), "classes": names})
    ((of_region,),) = probs[0]
    assert of_region.shape == (1204,)
    assert of_region.sum().item() == pytest.approx(1, abs=1e-5)
    assert sorted(found.pred_classes.tolist()) == list(range(1203))
    torch.testing.assert_close(found.scores, of_region[found.pred_classes])
    # A class has the embedding of a prompt with this class alone.
    (together,) = model.encode_classes([model.prompts.for_inference({"classes": names})])
    for c in (0, 39, 40, 777, 1202):
        (alone,) = model.encode_classes([[class_prompt([names[c]])]])
        embedding = together.embeddings[together.classes.index(c)]
        torch.testing.assert_close(embedding, alone.embeddings[0])


def test_a_class_embedding_is_the_mean_over_its_tokens(model: OpenVocabularyRCNN) -> None:
    prompt = class_prompt(["dog", "traffic light"], classes=[8, 3])
    with torch.no_grad():
        (classes,) = model.encode_classes([[prompt]])
        tokens = model.tokenizer([prompt])
        hidden = model.language_backbone(tokens).hidden[0]
    # [CLS] dog . traffic light [SEP]
    torch.testing.assert_close(classes.embeddings[0], hidden[1])
    torch.testing.assert_close(classes.embeddings[1], (hidden[3] + hidden[4]) / 2)
    assert classes.classes == (8, 3)


def test_a_duplicate_name_has_the_first_index(
    model: OpenVocabularyRCNN, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (found,) = detect(model, {"image": random_image(), "classes": ["cat", "dog", "cat"]})
    assert set(found.pred_classes.tolist()) == {0, 1}


def test_results_have_the_requested_size(model: OpenVocabularyRCNN) -> None:
    x = {"image": random_image(), "classes": ["cat"]}
    (found,), (larger,) = detect(model, x), detect(model, {**x, "height": 128, "width": 192})
    expected = found.pred_boxes.tensor * torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(larger.pred_boxes.tensor, expected, atol=1e-3, rtol=0)
    assert larger.pred_masks.shape[1:] == (128, 192)


def test_the_classes_of_a_caption_are_its_phrases(model: OpenVocabularyRCNN) -> None:
    caption = "a dog on a red mat"
    x = {"image": random_image(), "caption": caption, "phrases": [[[0, 5]], [[9, 18]]]}
    with torch.no_grad():
        (result,) = model([x])
    assert result["phrases"] == ["a dog", "a red mat"]
    assert set(result["instances"].pred_classes.tolist()) == {0, 1}


def test_a_phrase_without_tokens_is_never_detected(model: OpenVocabularyRCNN) -> None:
    caption = "a dog \x00"
    prompt = Prompt(caption, (((6, 7),), ((0, 5),)), (0, 1))
    (found,) = detect(model, {"image": random_image(), "prompt": prompt})
    assert set(found.pred_classes.tolist()) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_part_gets_gradients(kind: str) -> None:
    model = two_stage_model(*KINDS[kind])
    found = losses(model, [street(), with_masks(training_input([], [], classes=["cow"]))])
    assert all(torch.isfinite(loss) for loss in found.values())
    sum(found.values()).backward()
    unused = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # No region of these small images is on the coarsest level.
    assert [name for name in unused if not name.startswith("backbone.")] == []


def test_every_stage_of_a_cascade_has_its_own_predictor_and_losses() -> None:
    model = two_stage_model(*CASCADE)
    found = losses(model, [street()])
    stages = {name for name in found if name.startswith(("loss_cls", "loss_box_reg"))}
    assert stages == {f"{loss}_stage{k}" for loss in ("loss_cls", "loss_box_reg") for k in range(3)}
    weights = [p.region_word.projection.weight for p in model.roi_heads.box_predictor]
    assert not torch.equal(weights[0], weights[1])
    coders = [p.box2box_transform.weights for p in model.roi_heads.box_predictor]
    assert coders == [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]


def test_a_prompt_of_several_images_is_encoded_once() -> None:
    model = two_stage_model()
    batch_sizes = []
    model.language_backbone.register_forward_pre_hook(
        lambda _, args: batch_sizes.append(len(args[0]))
    )
    names = ["cat", "traffic light", "dog"]
    first, second = (street(prompt=class_prompt(names)) for _ in range(2))
    losses(model, [first, second, street(classes=["dog", "cow", "cat"])])
    assert batch_sizes == [2]


def test_losses_do_not_depend_on_the_order_of_separately_encoded_names() -> None:
    model = two_stage_model(*PHRASES, "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    expected = losses(model, [street()])
    x = street(classes=["dog", "traffic light", "cat"])
    x["instances"].gt_classes = torch.tensor([2, 0])
    torch.testing.assert_close(losses(model, [x]), expected)


def test_inputs_without_prompts_train_on_the_classes_of_the_dataset() -> None:
    """As of Detectron2's mapper: the metadata's class names, split over several prompts."""
    MetadataCatalog.get("test_two_stage_plain").thing_classes = NAMES
    opts = ("DATASETS.TRAIN", ("test_two_stage_plain",), "MODEL.PROMPT.MAX_CLASSES", 2, *PHRASES)
    model = two_stage_model(*opts, "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    x = street(classes=NAMES)
    expected = losses(model, [x])
    del x["classes"]
    torch.testing.assert_close(losses(model, [x]), expected)


def test_unknown_masks_do_not_affect_losses() -> None:
    """The mask of the second box is marked as unknown, so another one gives the same loss."""
    model = two_stage_model(*PHRASES, "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    unknown = with_masks(street(), unknown=(1,))
    found = losses(model, [unknown])
    other = with_masks(street(), unknown=(1,))
    other["instances"].gt_masks.tensor[1] = True
    torch.testing.assert_close(losses(model, [other])["loss_mask"], found["loss_mask"])
    assert losses(model, [street()])["loss_mask"] != found["loss_mask"]


def test_ground_truth_of_classes_outside_the_prompt_is_rejected() -> None:
    x = training_input([[5, 5, 50, 60]], [4], classes=["cat", "dog"], file_name="street.jpg")
    with pytest.raises(ValueError, match=r"gt_classes \[4\] of 'street.jpg'.*prompts, \[0, 1\]"):
        two_stage_model(*BOXES_ONLY).train()([x])


@pytest.mark.parametrize(
    ("key", "off"),
    [
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", {}),
        ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", {"MODEL.MASK_ON": False}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_class_specific_boxes_and_masks_are_rejected(kind: str, key: str, off: dict) -> None:
    with pytest.raises(ValueError, match=rf"{key} is False.*set it to True"):
        two_stage_model(*KINDS[kind], key, False)
    for switch, value in off.items():
        two_stage_model(*KINDS[kind], key, False, switch, value)


def test_roi_heads_without_class_embeddings_are_an_error() -> None:
    model = two_stage_model(*BOXES_ONLY)
    heads = model.roi_heads
    assert isinstance(heads, OpenVocabularyROIHeads)
    images = model.preprocess_image([{"image": random_image()}])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    with pytest.raises(ValueError, match=r"class_embeddings is None.*OpenVocabularyRCNN"):
        heads(images, features, proposals, None)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_model(kind: str, eager_switching: None) -> None:
    model = two_stage_model(*ALL, *BOXES_ONLY, *KINDS[kind])
    image = random_image()
    lists = [["cat"], ["dog", "café"], ["traffic light", "cat", "dog"]]
    expected = [detect(model, {"image": image, "classes": names})[0] for names in lists]

    def is_right(turn: int) -> bool:
        k = turn % len(lists)
        (found,) = detect(model, {"image": image, "classes": lists[k]})
        return torch.equal(found.scores, expected[k].scores)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(24)))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_given_boxes(kind: str) -> None:
    """As Detectron2's test-time augmentation predicts them."""
    model = two_stage_model(*ALL, *KINDS[kind])
    x = {"image": random_image(), "classes": ["cat", "dog"]}
    with torch.no_grad():
        (found,) = model.inference([x], do_postprocess=False)
        given = Instances(found.image_size)
        given.pred_boxes, given.pred_classes = found.pred_boxes, found.pred_classes
        (masks,) = model.inference([x], detected_instances=[given], do_postprocess=False)
        (pasted,) = model.inference([x], detected_instances=[given])
    assert torch.equal(masks.pred_masks, found.pred_masks)
    assert pasted["instances"].pred_masks.shape[1:] == (64, 64)


def test_proposals_may_be_precomputed() -> None:
    model = two_stage_model(*ALL, *BOXES_ONLY)
    x = {"image": random_image(), "classes": ["cat", "dog"]}
    (expected,) = detect(model, x)
    images = model.preprocess_image([x])
    with torch.no_grad():
        (proposals,), _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    model.proposal_generator = None
    (found,) = detect(model, {**x, "proposals": proposals})
    assert torch.equal(found.scores, expected.scores)


def test_checkpoints_exclude_weights_of_the_language_backbone() -> None:
    model = two_stage_model(*BOXES_ONLY)
    assert excluded_prefixes(model) == ()
    model.language_backbone.checkpoint_excluded = ("bert.",)
    assert excluded_prefixes(model) == ("language_backbone.bert.",)
