import pytest
import torch
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from glipv2_d2.layers.box_coder import BoxCoder
from glipv2_d2.modeling.anchors import AnchorGenerator
from glipv2_d2.modeling.assigner import ATSSAssigner
from glipv2_d2.modeling.losses import (
    centerness_targets,
    giou_loss,
    grounding_losses,
    token_targets,
)
from glipv2_d2.structures import DensePredictions, DenseTargets

CODER = BoxCoder()
NUM_TOKENS = 6
FEATURES = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]
ANCHORS_PER_LEVEL = AnchorGenerator([8, 16], 4.0)(FEATURES)
GT_BOXES = torch.tensor([[3.2, 4.1, 37.9, 35.3], [20.4, 18.7, 60.1, 61.5]])


def random_predictions(num_images: int, seed: int = 0) -> DensePredictions:
    generator = torch.Generator().manual_seed(seed)

    def outputs(*channels: int) -> list[Tensor]:
        return [
            torch.randn(num_images, len(a), *channels, generator=generator).requires_grad_()
            for a in ANCHORS_PER_LEVEL
        ]

    return DensePredictions(outputs(NUM_TOKENS), outputs(4), outputs(), ANCHORS_PER_LEVEL)


def targets_for(gt_boxes_per_image: list[Tensor]) -> DenseTargets:
    """Targets of images whose i-th object is spelled by the token i + 1."""
    anchors = torch.cat(ANCHORS_PER_LEVEL)
    matched, tokens, deltas = [], [], []
    for gt_boxes in gt_boxes_per_image:
        matched.append(ATSSAssigner(topk=9)(ANCHORS_PER_LEVEL, gt_boxes))
        gt_tokens = torch.eye(NUM_TOKENS)[1 : 1 + len(gt_boxes)]
        tokens.append(token_targets(matched[-1], gt_tokens, max_tokens=256))
        positive = matched[-1] >= 0
        deltas.append(torch.zeros(len(anchors), 4))
        deltas[-1][positive] = CODER.encode(gt_boxes[matched[-1][positive]], anchors[positive])
    return DenseTargets(torch.stack(matched), torch.stack(tokens), torch.stack(deltas))


def losses_of(predictions: DensePredictions, targets: DenseTargets) -> dict[str, Tensor]:
    num_images = len(targets.matched_idxs)
    return grounding_losses(
        predictions,
        targets,
        torch.ones(num_images, NUM_TOKENS, dtype=torch.bool),
        box_coder=CODER,
        alpha=0.25,
        gamma=2.0,
        token_weight=1.0,
        box_weight=2.0,
        centerness_weight=1.0,
    )


def outputs_of(predictions: DensePredictions) -> list[Tensor]:
    return [
        *predictions.token_logits_per_level,
        *predictions.box_deltas_per_level,
        *predictions.centerness_per_level,
    ]


def test_losses_equal_their_formulas() -> None:
    predictions, targets = random_predictions(2), targets_for([GT_BOXES, GT_BOXES[:1]])
    losses = losses_of(predictions, targets)

    positive = targets.matched_idxs >= 0
    num_positives = positive.sum()
    assert num_positives > 3
    anchors = torch.cat(ANCHORS_PER_LEVEL).expand(2, -1, 4)[positive]
    gt_boxes = torch.cat([GT_BOXES[targets.matched_idxs[i][positive[i]]] for i in range(2)])
    centerness = centerness_targets(anchors, gt_boxes)
    pred_boxes = CODER.decode(torch.cat(predictions.box_deltas_per_level, 1)[positive], anchors)
    pred_centerness = torch.cat(predictions.centerness_per_level, 1)[positive].sigmoid()
    cross_entropy = -(
        centerness * pred_centerness.log() + (1 - centerness) * (1 - pred_centerness).log()
    )
    token_logits = torch.cat(predictions.token_logits_per_level, dim=1)
    focal = sigmoid_focal_loss(token_logits, targets.token_targets, 0.25, 2.0, "sum")
    expected = {
        "loss_token": focal / num_positives,
        "loss_box": 2 * (centerness * giou_loss(pred_boxes, gt_boxes)).sum() / centerness.sum(),
        "loss_centerness": cross_entropy.sum() / num_positives,
    }
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


def test_perfect_boxes_have_a_loss_of_0() -> None:
    targets = targets_for([GT_BOXES])
    sizes = [len(anchors) for anchors in ANCHORS_PER_LEVEL]
    random = random_predictions(1)
    perfect = DensePredictions(
        random.token_logits_per_level,
        list(targets.box_deltas.split(sizes, dim=1)),
        random.centerness_per_level,
        ANCHORS_PER_LEVEL,
    )
    assert losses_of(perfect, targets)["loss_box"].item() == pytest.approx(0, abs=1e-5)


def test_without_ground_truth_losses_are_finite_and_connected_to_every_output() -> None:
    predictions = random_predictions(2)
    losses = losses_of(predictions, targets_for([torch.zeros(0, 4)] * 2))
    assert losses["loss_box"] == losses["loss_centerness"] == 0
    assert losses["loss_token"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in outputs_of(predictions))


def test_an_image_without_ground_truth_changes_only_the_token_loss() -> None:
    pair = random_predictions(2)
    alone = DensePredictions(
        *([x[:1] for x in outputs] for outputs in (
            pair.token_logits_per_level, pair.box_deltas_per_level, pair.centerness_per_level
        )),
        ANCHORS_PER_LEVEL,
    )  # fmt: skip
    of_pair = losses_of(pair, targets_for([GT_BOXES, torch.zeros(0, 4)]))
    of_one = losses_of(alone, targets_for([GT_BOXES]))
    torch.testing.assert_close(of_pair["loss_box"], of_one["loss_box"])
    torch.testing.assert_close(of_pair["loss_centerness"], of_one["loss_centerness"])
    assert of_pair["loss_token"] > of_one["loss_token"]


def test_half_precision_outputs_give_float32_losses() -> None:
    exact, targets = random_predictions(1), targets_for([GT_BOXES])
    half = DensePredictions(
        [x.bfloat16() for x in exact.token_logits_per_level],
        [x.bfloat16() for x in exact.box_deltas_per_level],
        [x.bfloat16() for x in exact.centerness_per_level],
        ANCHORS_PER_LEVEL,
    )
    rounded = DensePredictions(
        [x.float() for x in half.token_logits_per_level],
        [x.float() for x in half.box_deltas_per_level],
        [x.float() for x in half.centerness_per_level],
        ANCHORS_PER_LEVEL,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(half, targets)
    torch.testing.assert_close(losses, losses_of(rounded, targets))


def test_averaged_over_gpus_losses_are_those_of_the_joint_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two GPUs with different numbers of positives, simulated one after the other."""
    joint = random_predictions(2)
    gt_boxes_per_image = [GT_BOXES, GT_BOXES[1:]]
    per_gpu = [
        DensePredictions(
            [x[i : i + 1] for x in joint.token_logits_per_level],
            [x[i : i + 1] for x in joint.box_deltas_per_level],
            [x[i : i + 1] for x in joint.centerness_per_level],
            ANCHORS_PER_LEVEL,
        )
        for i in range(2)
    ]
    expected = losses_of(joint, targets_for(gt_boxes_per_image))

    sent: list[Tensor] = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: sent.append(values.clone()))
    for i in range(2):
        losses_of(per_gpu[i], targets_for([gt_boxes_per_image[i]]))
    assert sent[0][0] != sent[1][0]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.copy_(sum(sent)))
    per_gpu_losses = [losses_of(per_gpu[i], targets_for([gt_boxes_per_image[i]])) for i in range(2)]
    mean = {name: (per_gpu_losses[0][name] + per_gpu_losses[1][name]) / 2 for name in expected}
    torch.testing.assert_close(mean, expected)
