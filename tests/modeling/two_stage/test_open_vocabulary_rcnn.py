from __future__ import annotations

import logging
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

from glipv2_d2.modeling.two_stage import OpenVocabularyRCNN, roi_heads
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


def best_scores(found: Instances, asked: list[str]) -> dict[str, float]:
    return {
        name: found.scores[found.pred_classes == c].max().item() for c, name in enumerate(asked)
    }


def losses(model: OpenVocabularyRCNN, inputs: list[dict]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(inputs)


def with_masks(x: dict[str, Any], *, unknown: tuple[int, ...] = ()) -> dict[str, Any]:
    """Masks that fill the upper half of a box, and garbage for those that are unknown."""
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
def test_a_score_follows_its_name_through_every_order_of_the_list(kind: str) -> None:
    model = two_stage_model(*ALL, *BOXES_ONLY, *PHRASES, *KINDS[kind])
    x = {"image": random_image(), "classes": NAMES}
    (found,) = detect(model, x)
    (shuffled,) = detect(model, {**x, "classes": NAMES[::-1]})
    scores, expected = best_scores(shuffled, NAMES[::-1]), best_scores(found, NAMES)
    assert max(expected.values()) - min(expected.values()) > 1e-3, "the names are told apart"
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_may_ask_different_lists(kind: str) -> None:
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


def test_names_of_all_chunks_share_one_softmax() -> None:
    opts = (*ALL, *BOXES_ONLY, *PHRASES)
    x = {"image": random_image(), "classes": NAMES}
    (whole,) = detect(two_stage_model(*opts), x)
    chunked_model = two_stage_model(*opts, "MODEL.PROMPT.MAX_CLASSES", 2)
    assert len(chunked_model.input_prompts.for_inference(x)) == 3
    (chunked,) = detect(chunked_model, x)
    assert best_scores(chunked, NAMES) == pytest.approx(best_scores(whole, NAMES), abs=1e-6)


def test_1203_names_are_scored_side_by_side_under_their_own_numbers() -> None:
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
    # The vector at a name's number is that of the name asked alone.
    (asked,) = model.read([model.input_prompts.for_inference({"classes": names})])
    for c in (0, 39, 40, 777, 1202):
        (alone,) = model.read([[class_prompt([names[c]])]])
        torch.testing.assert_close(asked.vectors[asked.classes.index(c)], alone.vectors[0])


def test_a_names_vector_is_the_mean_over_its_tokens(model: OpenVocabularyRCNN) -> None:
    prompt = class_prompt(["dog", "traffic light"], classes=[8, 3])
    with torch.no_grad():
        (asked,) = model.read([[prompt]])
        tokens = model.tokenizer([prompt])
        hidden = model.language_backbone(tokens).hidden[0]
    # [CLS] dog . traffic light [SEP]
    torch.testing.assert_close(asked.vectors[0], hidden[1])
    torch.testing.assert_close(asked.vectors[1], (hidden[3] + hidden[4]) / 2)
    assert asked.classes == (8, 3)


def test_a_duplicate_name_carries_the_first_index(
    model: OpenVocabularyRCNN, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (found,) = detect(model, {"image": random_image(), "classes": ["cat", "dog", "cat"]})
    assert set(found.pred_classes.tolist()) == {0, 1}


def test_results_are_in_the_pixels_that_the_caller_wants(model: OpenVocabularyRCNN) -> None:
    x = {"image": random_image(), "classes": ["cat"]}
    (found,), (larger,) = detect(model, x), detect(model, {**x, "height": 128, "width": 192})
    expected = found.pred_boxes.tensor * torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(larger.pred_boxes.tensor, expected, atol=1e-3, rtol=0)
    assert larger.pred_masks.shape[1:] == (128, 192)


def test_a_caption_is_asked_its_phrases(model: OpenVocabularyRCNN) -> None:
    caption = "a dog on a red mat"
    x = {"image": random_image(), "caption": caption, "phrases": [[[0, 5]], [[9, 18]]]}
    with torch.no_grad():
        (result,) = model([x])
    assert result["phrases"] == ["a dog", "a red mat"]
    assert set(result["instances"].pred_classes.tolist()) == {0, 1}


def test_a_phrase_that_the_tokenizer_cannot_read_is_never_found(model: OpenVocabularyRCNN) -> None:
    caption = "a dog \x00"
    prompt = Prompt(caption, (((6, 7),), ((0, 5),)), (0, 1))
    (found,) = detect(model, {"image": random_image(), "prompt": prompt})
    assert set(found.pred_classes.tolist()) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_every_part_that_is_not_frozen(kind: str) -> None:
    model = two_stage_model(*KINDS[kind])
    found = losses(model, [street(), with_masks(training_input([], [], classes=["cow"]))])
    assert all(torch.isfinite(loss) for loss in found.values())
    sum(found.values()).backward()
    still = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # The coarsest level has a box of its own size, and no region of these small images.
    assert [name for name in still if not name.startswith("backbone.")] == []


def test_every_stage_of_a_cascade_has_its_own_predictor_and_losses() -> None:
    model = two_stage_model(*CASCADE)
    found = losses(model, [street()])
    stages = {name for name in found if name.startswith(("loss_cls", "loss_box_reg"))}
    assert stages == {f"{loss}_stage{k}" for loss in ("loss_cls", "loss_box_reg") for k in range(3)}
    weights = [p.region_word.projection.weight for p in model.roi_heads.box_predictor]
    assert not torch.equal(weights[0], weights[1])
    coders = [p.box2box_transform.weights for p in model.roi_heads.box_predictor]
    assert coders == [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]


def test_a_prompt_that_several_images_are_asked_is_read_once() -> None:
    model = two_stage_model()
    num_read = []
    model.language_backbone.register_forward_pre_hook(lambda _, args: num_read.append(len(args[0])))
    asked = ["cat", "traffic light", "dog"]
    first, second = (street(prompt=class_prompt(asked)) for _ in range(2))
    losses(model, [first, second, street(classes=["dog", "cow", "cat"])])
    assert num_read == [2]


def test_the_order_of_names_changes_no_loss_where_they_are_read_one_by_one() -> None:
    model = two_stage_model(*PHRASES, "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    expected = losses(model, [street()])
    x = street(classes=["dog", "traffic light", "cat"])
    x["instances"].gt_classes = torch.tensor([2, 0])
    torch.testing.assert_close(losses(model, [x]), expected)


def test_a_mapper_without_prompts_trains_on_the_names_of_the_data_set() -> None:
    """As Detectron2's own: the names are those of the metadata, all of them in chunks."""
    MetadataCatalog.get("test_two_stage_plain").thing_classes = NAMES
    opts = ("DATASETS.TRAIN", ("test_two_stage_plain",), "MODEL.PROMPT.MAX_CLASSES", 2, *PHRASES)
    model = two_stage_model(*opts, "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    x = street(classes=NAMES)
    expected = losses(model, [x])
    del x["classes"]
    torch.testing.assert_close(losses(model, [x]), expected)


def test_masks_that_are_unknown_teach_nothing() -> None:
    """The second box has a mask that is none: another one there changes no loss."""
    model = two_stage_model(*PHRASES, "MODEL.LANGUAGE_BACKBONE.FREEZE", True)
    unknown = with_masks(street(), unknown=(1,))
    found = losses(model, [unknown])
    other = with_masks(street(), unknown=(1,))
    other["instances"].gt_masks.tensor[1] = True
    torch.testing.assert_close(losses(model, [other])["loss_mask"], found["loss_mask"])
    assert losses(model, [street()])["loss_mask"] != found["loss_mask"]


def test_ground_truth_that_is_not_asked_is_named() -> None:
    x = training_input([[5, 5, 50, 60]], [4], classes=["cat", "dog"], file_name="street.jpg")
    with pytest.raises(ValueError, match=r"gt_classes \[4\] of 'street.jpg'.*asked, \[0, 1\]"):
        two_stage_model(*BOXES_ONLY).train()([x])


@pytest.mark.parametrize(
    ("key", "off"),
    [
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", {}),
        ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", {"MODEL.MASK_ON": False}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_and_masks_by_class_are_refused(kind: str, key: str, off: dict) -> None:
    with pytest.raises(ValueError, match=rf"{key} is False.*set it to True"):
        two_stage_model(*KINDS[kind], key, False)
    for switch, value in off.items():
        two_stage_model(*KINDS[kind], key, False, switch, value)


def test_heads_whose_model_asks_nothing_say_so() -> None:
    """The names in the config belong together."""
    model = two_stage_model(*BOXES_ONLY)
    heads = model.roi_heads
    assert isinstance(heads, roi_heads.OpenVocabularyROIHeads)
    images = model.preprocess_image([{"image": random_image()}])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    with pytest.raises(RuntimeError, match="OpenVocabularyRCNN"):
        heads(images, features, proposals, None)


def test_weights_that_the_config_names_are_no_part_of_checkpoints() -> None:
    model = two_stage_model(*BOXES_ONLY)
    assert model.checkpoint_excluded_prefixes == ()
    model.language_backbone.checkpoint_excluded = ("bert.",)
    assert model.checkpoint_excluded_prefixes == ("language_backbone.bert.",)
