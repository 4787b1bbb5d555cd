"""Two images with three and two regions, three closed classes, and names in columns 0 to 3."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from glipv2_d2.modeling.class_embeddings import ClassEmbeddings
from glipv2_d2.modeling.heads.region_word_score import DotProductScore, ResidualScore
from glipv2_d2.modeling.two_stage import ClosedSetOutputLayers

VISUAL_DIM, LANGUAGE_DIM, NUM_CLOSED = 6, 4, 3
BOXES = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 8.0, 50.0, 30.0], [0.0, 0.0, 60.0, 60.0]])
# Per image, the class index of each name and its similarity to the closed classes.
NAMES = [
    ((0, 3), [[1.0, 0.0, 0.0], [0.0, 0.5, 0.8]]),
    ((1, 2), [[0.9, 0.9, 0.9], [0.0, 0.0, 0.0]]),
]


def make_predictor(*, use_sigmoid_ce: bool = False) -> ClosedSetOutputLayers:
    torch.manual_seed(0)
    score = ResidualScore(visual_dim=VISUAL_DIM, language_dim=LANGUAGE_DIM)
    predictor = ClosedSetOutputLayers(
        ShapeSpec(channels=VISUAL_DIM),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_closed_classes=NUM_CLOSED,
        num_classes=5,
        region_word=score,
        use_sigmoid_ce=use_sigmoid_ce,
    )
    for layer in (predictor.cls_score, predictor.bbox_pred):
        torch.nn.init.normal_(layer.weight)
    return predictor.eval()


def proposals() -> list[Instances]:
    return [Instances((64, 64), proposal_boxes=Boxes(b)) for b in (BOXES, BOXES[1:])]


def names() -> list[ClassEmbeddings]:
    generator = torch.Generator().manual_seed(0)
    return [
        ClassEmbeddings(
            torch.randn(2, LANGUAGE_DIM, generator=generator), classes, torch.tensor(similarity)
        )
        for classes, similarity in NAMES
    ]


@pytest.mark.parametrize("use_sigmoid_ce", [False, True])
def test_outputs_equal_the_formula_written_out(use_sigmoid_ce: bool) -> None:
    predictor = make_predictor(use_sigmoid_ce=use_sigmoid_ce)
    score = predictor.region_word
    torch.nn.init.normal_(score.projection.weight)
    x = torch.randn(5, VISUAL_DIM)
    predictions = predictor(x, proposals(), names())
    probs = torch.cat(list(predictor.predict_probs(predictions, proposals())))
    deltas = predictions.deltas.view(5, 4, 4)
    assert probs.shape == (5, 5)
    class_logits, class_deltas = predictor.cls_score(x), predictor.bbox_pred(x).view(5, 3, 4)
    class_probs = class_logits.sigmoid() if use_sigmoid_ce else class_logits.softmax(1)
    for r, i in enumerate([0, 0, 0, 1, 1]):
        embedded = names()[i]
        unnamed = {0, 1, 2, 3} - set(embedded.classes)
        assert (probs[r, list(unnamed)] == 0).all()
        for row, column in enumerate(embedded.classes):
            products = [
                class_probs[r, k].item() * similarity
                for k, similarity in enumerate(NAMES[i][1][row])
            ]
            evidence = max(products) if use_sigmoid_ce else min(sum(products), 1.0)
            evidence = max(evidence, 1e-5)
            text = embedded.embeddings[row]
            word = score.projection(text / text.norm() / 2) @ x[r]
            odds = evidence / (1 - evidence) * math.exp(word)
            assert probs[r, column].item() == pytest.approx(odds / (1 + odds), rel=1e-4)
            best = products.index(max(products))
            if max(products) == 0:
                best = int(class_probs[r, :NUM_CLOSED].argmax())
            torch.testing.assert_close(deltas[r, column], class_deltas[r, best])
            assert predictions.closed_classes[i][r - 3 * i, column] == best


def test_the_residual_score_is_zero_and_receives_gradients() -> None:
    predictor = make_predictor()
    score = predictor.region_word
    assert isinstance(score, DotProductScore)
    predictor(torch.randn(5, VISUAL_DIM), proposals(), names()).logits.sum().backward()
    for name in ("projection.weight", "projection.bias", "bias", "bias_language"):
        assert not score.get_parameter(name).any()
        assert score.get_parameter(name).grad.any()


def test_embeddings_without_similarity_are_an_error() -> None:
    embedded = [ClassEmbeddings(part.embeddings, part.classes) for part in names()]
    with pytest.raises(ValueError, match="no similarity to closed classes: set .*CLOSED_SET"):
        make_predictor()(torch.randn(5, VISUAL_DIM), proposals(), embedded)
