"""Two images with three and two regions, asked names of a list of five."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from glipv2_d2.modeling.heads.region_word import CosineScore, DotProductScore
from glipv2_d2.modeling.two_stage import RegionWordOutputLayers
from glipv2_d2.modeling.two_stage.asked_names import AskedNames, asking

VISUAL_DIM, LANGUAGE_DIM, NUM_CLASSES = 6, 4, 5
BOX_CODER = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
BOXES = [[4.0, 4.0, 30.0, 40.0], [20.0, 8.0, 50.0, 30.0], [0.0, 0.0, 60.0, 60.0]]


def make_predictor(**options: Any) -> RegionWordOutputLayers:
    torch.manual_seed(0)
    region_word = CosineScore(
        visual_dim=VISUAL_DIM, language_dim=LANGUAGE_DIM, prior_prob=0.01, log_scale=-1.0
    )
    predictor = RegionWordOutputLayers(
        ShapeSpec(channels=VISUAL_DIM),
        region_word=region_word,
        box2box_transform=BOX_CODER,
        num_classes=NUM_CLASSES,
        **options,
    )
    torch.nn.init.normal_(predictor.background.weight)
    return predictor


def make_proposals(gt_classes_per_image: Sequence[Sequence[int]]) -> list[Instances]:
    """Per image as many proposals as classes; the ground truth of each is 2 pixels to the right."""
    proposals = []
    for gt_classes in gt_classes_per_image:
        instances = Instances((64, 64))
        boxes = torch.tensor(BOXES[: len(gt_classes)]).reshape(-1, 4)
        instances.proposal_boxes = Boxes(boxes)
        instances.gt_boxes = Boxes(boxes + torch.tensor([2.0, 0.0, 2.0, 0.0]))
        instances.gt_classes = torch.tensor(gt_classes, dtype=torch.int64)
        proposals.append(instances)
    return proposals


def names(*classes: int, seed: int = 0) -> AskedNames:
    vectors = torch.randn(NUM_CLASSES, LANGUAGE_DIM, generator=torch.Generator().manual_seed(seed))
    return AskedNames(vectors[list(classes)], classes)


def losses(predictor: FastRCNNOutputLayers, x: Tensor, proposals: list[Instances]) -> dict:
    # The federated loss draws classes.
    torch.manual_seed(1)
    with EventStorage():
        return predictor.losses(predictor(x), proposals)


def test_probabilities_equal_the_formula_written_out() -> None:
    """One softmax over the cosines of all names of an image and the background."""
    predictor = make_predictor()
    score = predictor.region_word
    x = torch.randn(5, VISUAL_DIM)
    asked = [names(0, 1, 2, 3, 4), names(2, 0, seed=3)]
    with asking(asked):
        probs = predictor.predict_probs(predictor(x), make_proposals([[0, 0, 0], [0, 0]]))
    image_of_region = [0, 0, 0, 1, 1]
    for r, i in enumerate(image_of_region):
        region = score.region_projection(x[r])
        exponentials = torch.zeros(NUM_CLASSES + 1)
        exponentials[-1] = (predictor.background.weight[0] @ x[r] + predictor.background.bias).exp()
        for vector, c in zip(asked[i].vectors, asked[i].classes, strict=True):
            word = score.projection(vector / vector.norm())
            cosine = (region @ word) / (region.norm() * word.norm())
            exponentials[c] = (cosine * math.exp(1.0) + score.bias[0]).exp()
        ours = torch.cat(list(probs))[r]
        torch.testing.assert_close(ours, exponentials / exponentials.sum())


def test_a_class_that_an_image_is_not_asked_has_no_probability() -> None:
    for use_sigmoid_ce in (False, True):
        predictor = make_predictor(use_sigmoid_ce=use_sigmoid_ce)
        with asking([names(4, 1), names(0, 1, 2)]):
            probs = predictor.predict_probs(
                predictor(torch.randn(5, VISUAL_DIM)), make_proposals([[0, 0, 0], [0, 0]])
            )
        assert (probs[0][:, [0, 2, 3]] == 0).all()
        assert (probs[0][:, [1, 4, 5]] > 0).all()
        assert (probs[1][:, [3, 4]] == 0).all()


@pytest.mark.parametrize("use_sigmoid_ce", [False, True])
def test_classes_that_are_not_asked_change_no_loss(use_sigmoid_ce: bool) -> None:
    """Classes 1 and 4 of a list of five cost what 0 and 1 of a list of two cost."""
    predictor = make_predictor(use_sigmoid_ce=use_sigmoid_ce)
    x = torch.randn(3, VISUAL_DIM)
    background = NUM_CLASSES
    with asking([names(1, 4)]):
        sparse = losses(predictor, x, make_proposals([[4, 1, background]]))
    predictor.num_classes = background = 2
    with asking([AskedNames(names(1, 4).vectors, (0, 1))]):
        dense = losses(predictor, x, make_proposals([[1, 0, background]]))
    torch.testing.assert_close(sparse, dense)


def test_another_order_of_the_names_changes_nothing_for_a_class() -> None:
    predictor = make_predictor()
    predictions = predictor(torch.randn(3, VISUAL_DIM))
    proposals = make_proposals([[0, 0, 0]])
    with asking([names(0, 1, 2, 3, 4)]):
        expected = predictor.class_logits(predictions[0], proposals, NUM_CLASSES)
    with asking([names(3, 0, 4, 2, 1)]):
        permuted = predictor.class_logits(predictions[0], proposals, NUM_CLASSES)
    torch.testing.assert_close(permuted, expected)


LOSSES = {
    "softmax": {"smooth_l1_beta": 0.5},
    "giou": {"box_reg_loss_type": "giou", "loss_weight": {"loss_box_reg": 2.0}},
    "sigmoid": {"use_sigmoid_ce": True},
    "federated": {
        "use_sigmoid_ce": True,
        "use_fed_loss": True,
        "get_fed_loss_cls_weights": lambda: torch.tensor([1.0, 5.0, 2.0, 3.0, 1.0]),
        "fed_loss_num_classes": 3,
    },
}


@pytest.mark.parametrize("kind", LOSSES)
def test_with_detectron2s_rows_for_words_losses_and_gradients_are_detectron2s(kind: str) -> None:
    """Word k is the k-th axis, and its projection the k-th row of Detectron2's table."""
    torch.manual_seed(0)
    shape = ShapeSpec(channels=VISUAL_DIM)
    options = {"box2box_transform": BOX_CODER, "num_classes": NUM_CLASSES, **LOSSES[kind]}
    theirs = FastRCNNOutputLayers(shape, cls_agnostic_bbox_reg=True, **options)
    torch.nn.init.normal_(theirs.cls_score.weight)
    torch.nn.init.normal_(theirs.cls_score.bias)
    region_word = DotProductScore(visual_dim=VISUAL_DIM, language_dim=NUM_CLASSES, prior_prob=0.5)
    ours = RegionWordOutputLayers(shape, region_word=region_word, **options)
    with torch.no_grad():
        *rows, background = theirs.cls_score.weight
        *biases, background_bias = theirs.cls_score.bias
        # The score halves its words.
        region_word.projection.weight.copy_(2 * torch.stack(rows).T)
        region_word.projection.bias.zero_()
        region_word.bias_language.copy_(torch.stack(biases))
        ours.background.weight.copy_(background[None])
        ours.background.bias.copy_(background_bias[None])
        ours.bbox_pred.load_state_dict(theirs.bbox_pred.state_dict())
    proposals = make_proposals([[1, NUM_CLASSES, 4], [NUM_CLASSES, 0]])
    x = torch.randn(5, VISUAL_DIM)
    results = []
    for predictor in (ours, theirs):
        regions = x.clone().requires_grad_()
        with asking([AskedNames(torch.eye(NUM_CLASSES), tuple(range(NUM_CLASSES)))] * 2):
            found = losses(predictor, regions, proposals)
        sum(found.values()).backward()
        results.append((found, regions.grad))
    (our_losses, our_gradient), (their_losses, their_gradient) = results
    assert all(loss > 0 for loss in their_losses.values())
    torch.testing.assert_close(our_losses, their_losses)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_gradients_of_regions_and_words_are_right() -> None:
    predictor = make_predictor().double()
    proposals = make_proposals([[0, 0], [0]])
    x = torch.randn(3, VISUAL_DIM, dtype=torch.float64, requires_grad=True)
    first, second = (names(*asked).vectors.double() for asked in ((0, 3), (1, 2, 4)))

    def probabilities(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        with asking([AskedNames(first, (0, 3)), AskedNames(second, (1, 2, 4))]):
            return predictor.class_logits(x, proposals, NUM_CLASSES).softmax(dim=1)

    inputs = (x, first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(probabilities, inputs)


def test_inference_counts_as_many_classes_as_the_longest_list_has() -> None:
    """NUM_CLASSES says how many training has."""
    predictor = make_predictor()
    many = AskedNames(torch.randn(40, LANGUAGE_DIM), tuple(range(40)))
    with asking([many, names(1)]):
        probs = predictor.predict_probs(
            predictor(torch.randn(5, VISUAL_DIM)), make_proposals([[0, 0, 0], [0, 0]])
        )
    assert [p.shape for p in probs] == [(3, 41), (2, 41)]


def test_training_with_more_names_than_columns_is_an_error() -> None:
    predictor = make_predictor()
    many = AskedNames(torch.randn(6, LANGUAGE_DIM), tuple(range(6)))
    with (
        asking([many]),
        pytest.raises(ValueError, match=r"no\. 6 .*MODEL\.ROI_HEADS\.NUM_CLASSES is 5"),
    ):
        losses(predictor, torch.randn(1, VISUAL_DIM), make_proposals([[0]]))


def test_nothing_to_score_and_nothing_to_ask_are_no_special_case() -> None:
    predictor = make_predictor()
    nothing = AskedNames(torch.zeros(0, LANGUAGE_DIM), ())
    with asking([nothing, nothing]):
        predictions = predictor(torch.zeros(2, VISUAL_DIM))
        found, _ = predictor.inference(predictions, make_proposals([[], [0, 0]]))
    assert [len(instances) for instances in found] == [0, 0]
