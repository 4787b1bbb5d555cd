"""Two images with three and two regions, and classes of a list of five."""

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

from glipv2_d2.modeling.class_embeddings import ClassEmbeddings
from glipv2_d2.modeling.heads.region_word_score import CosineScore, DotProductScore
from glipv2_d2.modeling.two_stage import RegionWordOutputLayers

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


def embeddings(*classes: int, seed: int = 0) -> ClassEmbeddings:
    table = torch.randn(NUM_CLASSES, LANGUAGE_DIM, generator=torch.Generator().manual_seed(seed))
    return ClassEmbeddings(table[list(classes)], classes)


def losses(
    predictor: FastRCNNOutputLayers, x: Tensor, proposals: list[Instances], *args: Any
) -> dict[str, Tensor]:
    """The losses of x; ``args``: what the predictor needs beside it."""
    # The federated loss samples classes.
    torch.manual_seed(1)
    with EventStorage():
        return predictor.losses(predictor(x, *args), proposals)


def region_losses(
    predictor: RegionWordOutputLayers,
    x: Tensor,
    proposals: list[Instances],
    classes: list[ClassEmbeddings],
) -> dict[str, Tensor]:
    return losses(predictor, x, proposals, proposals, classes)


def probabilities(
    predictor: RegionWordOutputLayers, proposals: list[Instances], classes: list[ClassEmbeddings]
) -> list[Tensor]:
    """Of random regions, at inference."""
    x = torch.randn(sum(map(len, proposals)), VISUAL_DIM)
    predictions = predictor.eval()(x, proposals, classes)
    return list(predictor.predict_probs(predictions, proposals))


def test_probabilities_equal_the_formula_written_out() -> None:
    """One softmax over the cosines of all classes of an image and the background."""
    predictor = make_predictor().eval()
    score = predictor.region_word
    x = torch.randn(5, VISUAL_DIM)
    classes = [embeddings(0, 1, 2, 3, 4), embeddings(2, 0, seed=3)]
    proposals = make_proposals([[0, 0, 0], [0, 0]])
    probs = predictor.predict_probs(predictor(x, proposals, classes), proposals)
    image_of_region = [0, 0, 0, 1, 1]
    for r, i in enumerate(image_of_region):
        region = score.region_projection(x[r])
        exponentials = torch.zeros(NUM_CLASSES + 1)
        exponentials[-1] = (predictor.background.weight[0] @ x[r] + predictor.background.bias).exp()
        for embedding, c in zip(classes[i].embeddings, classes[i].classes, strict=True):
            word = score.projection(embedding / embedding.norm())
            cosine = (region @ word) / (region.norm() * word.norm())
            exponentials[c] = (cosine * math.exp(1.0) + score.bias[0]).exp()
        ours = torch.cat(list(probs))[r]
        torch.testing.assert_close(ours, exponentials / exponentials.sum())


def test_a_class_without_an_embedding_has_no_probability() -> None:
    for use_sigmoid_ce in (False, True):
        predictor = make_predictor(use_sigmoid_ce=use_sigmoid_ce)
        proposals = make_proposals([[0, 0, 0], [0, 0]])
        probs = probabilities(predictor, proposals, [embeddings(4, 1), embeddings(0, 1, 2)])
        assert (probs[0][:, [0, 2, 3]] == 0).all()
        assert (probs[0][:, [1, 4, 5]] > 0).all()
        assert (probs[1][:, [3, 4]] == 0).all()


@pytest.mark.parametrize("use_sigmoid_ce", [False, True])
def test_classes_without_embeddings_do_not_affect_losses(use_sigmoid_ce: bool) -> None:
    """Classes 1 and 4 of five have the losses of classes 0 and 1 of two."""
    predictor = make_predictor(use_sigmoid_ce=use_sigmoid_ce)
    x = torch.randn(3, VISUAL_DIM)
    background = NUM_CLASSES
    sparse = region_losses(predictor, x, make_proposals([[4, 1, background]]), [embeddings(1, 4)])
    predictor.num_classes = background = 2
    dense = region_losses(
        predictor,
        x,
        make_proposals([[1, 0, background]]),
        [ClassEmbeddings(embeddings(1, 4).embeddings, (0, 1))],
    )
    torch.testing.assert_close(sparse, dense)


def test_logits_do_not_depend_on_the_order_of_the_embeddings() -> None:
    predictor = make_predictor()
    x, proposals = torch.randn(3, VISUAL_DIM), make_proposals([[0, 0, 0]])
    expected, _ = predictor(x, proposals, [embeddings(0, 1, 2, 3, 4)])
    permuted, _ = predictor(x, proposals, [embeddings(3, 0, 4, 2, 1)])
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
def test_losses_and_gradients_equal_detectron2s(kind: str) -> None:
    """Embedding k is the k-th axis, and its projection the k-th row of Detectron2's classifier."""
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
        # DotProductScore halves its text projection.
        region_word.projection.weight.copy_(2 * torch.stack(rows).T)
        region_word.projection.bias.zero_()
        region_word.bias_language.copy_(torch.stack(biases))
        ours.background.weight.copy_(background[None])
        ours.background.bias.copy_(background_bias[None])
        ours.bbox_pred.load_state_dict(theirs.bbox_pred.state_dict())
    proposals = make_proposals([[1, NUM_CLASSES, 4], [NUM_CLASSES, 0]])
    x = torch.randn(5, VISUAL_DIM)
    classes = [ClassEmbeddings(torch.eye(NUM_CLASSES), tuple(range(NUM_CLASSES)))] * 2
    results = []
    for predictor, args in ((ours, (proposals, classes)), (theirs, ())):
        regions = x.clone().requires_grad_()
        computed = losses(predictor, regions, proposals, *args)
        sum(computed.values()).backward()
        results.append((computed, regions.grad))
    (our_losses, our_gradient), (their_losses, their_gradient) = results
    assert all(loss > 0 for loss in their_losses.values())
    torch.testing.assert_close(our_losses, their_losses)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_gradients_of_regions_and_embeddings_are_right() -> None:
    predictor = make_predictor().double()
    proposals = make_proposals([[0, 0], [0]])
    x = torch.randn(3, VISUAL_DIM, dtype=torch.float64, requires_grad=True)
    first, second = (embeddings(*c).embeddings.double() for c in ((0, 3), (1, 2, 4)))

    def class_probabilities(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        classes = [ClassEmbeddings(first, (0, 3)), ClassEmbeddings(second, (1, 2, 4))]
        logits, _ = predictor(x, proposals, classes)
        return logits.softmax(dim=1)

    inputs = (x, first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(class_probabilities, inputs)


def test_inference_has_as_many_columns_as_the_longest_list() -> None:
    """``num_classes`` is the number of columns in training only."""
    many = ClassEmbeddings(torch.randn(40, LANGUAGE_DIM), tuple(range(40)))
    probs = probabilities(
        make_predictor(), make_proposals([[0, 0, 0], [0, 0]]), [many, embeddings(1)]
    )
    assert [p.shape for p in probs] == [(3, 41), (2, 41)]


def test_training_rejects_more_classes_than_columns() -> None:
    many = ClassEmbeddings(torch.randn(6, LANGUAGE_DIM), tuple(range(6)))
    proposals = make_proposals([[0]])
    with pytest.raises(ValueError, match="num_classes is 5, but class_embeddings has class 5"):
        region_losses(make_predictor(), torch.randn(1, VISUAL_DIM), proposals, [many])


def test_images_without_regions_or_classes_have_no_detections() -> None:
    predictor = make_predictor().eval()
    no_classes = ClassEmbeddings(torch.zeros(0, LANGUAGE_DIM), ())
    proposals = make_proposals([[], [0, 0]])
    predictions = predictor(torch.zeros(2, VISUAL_DIM), proposals, [no_classes, no_classes])
    detections, _ = predictor.inference(predictions, proposals)
    assert [len(instances) for instances in detections] == [0, 0]
