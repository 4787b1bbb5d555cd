"""A small RetinaNet, trained on four drawn shapes, detects them by other names without training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers.average_precision import Detection, GroundTruth, average_precision
from PIL import Image
from torch import Tensor, nn

from glipv2_d2 import add_glipv2_config
from glipv2_d2.checkpoint import GLIPv2Checkpointer, save_weights
from glipv2_d2.data.drawn import drawn_cutouts

SIZE, CELL = 64, 32
# What the detector was trained on, and what its classes are called.
DRAWN = ["red circle", "blue star", "green square", "yellow cross"]
CLOSED = ["circle, disc", "star", "square", "cross"]
CUTOUTS = {cutout.name: cutout.image for cutout in drawn_cutouts()}
BATCH_SIZE, LEARNING_RATE = 8, 0.005
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


class SmallBackbone(Backbone):
    """Five convolutions; one map, "c3", of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = [(3, 16, 2), (16, 32, 2), (32, 32, 2), (32, 32, 1), (32, 32, 1)]
        for in_channels, channels, stride in sizes:
            conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
            layers += [conv, nn.GroupNorm(4, channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"c3": self.layers(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"c3": ShapeSpec(channels=32, stride=8)}


if "build_small_backbone" not in BACKBONE_REGISTRY:

    @BACKBONE_REGISTRY.register()
    def build_small_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
        return SmallBackbone()


def make_model(*opts: Any) -> nn.Module:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_small_backbone", "MODEL.PIXEL_STD", [64.0] * 3),
            *("MODEL.RETINANET.IN_FEATURES", ["c3"], "MODEL.RETINANET.NUM_CONVS", 1),
            *("MODEL.RETINANET.NORM", "GN", "MODEL.RETINANET.NUM_CLASSES", len(CLOSED)),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[24]]),
            *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
            *opts,
        ]
    )
    torch.manual_seed(0)
    return build_model(cfg)


def scene(seed: int) -> dict[str, Any]:
    """One to three drawn shapes, each in its own quarter of a noisy image."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(80, 160, 3) + rng.normal(0, 8, (SIZE, SIZE, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    boxes, classes = [], []
    for quarter in rng.permutation(4)[: rng.integers(1, 4)]:
        class_ = int(rng.integers(len(DRAWN)))
        side = int(rng.integers(20, 30))
        cutout = CUTOUTS[DRAWN[class_]].resize((side, side))
        x, y = (int(CELL * cell + rng.integers(CELL - side)) for cell in divmod(quarter, 2))
        image.paste(cutout, (x, y), cutout)
        boxes.append([x, y, x + side, y + side])
        classes.append(class_)
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.tensor(classes)
    return {
        "image": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(),
        "instances": instances,
    }


def train(model: nn.Module, num_iterations: int, **fields: Any) -> None:
    """Train on scenes with further fields, with a warm-up and a linear decay."""
    model.train()
    # Detectron2 starts from a batch of 100 positive anchors.
    model.loss_normalizer = 2 * BATCH_SIZE
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with EventStorage():
        for i in range(num_iterations):
            progress = i / num_iterations
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(10 * progress + 0.1, 2 * (1 - progress), 1)
            losses = model([scene(BATCH_SIZE * i + k) | fields for k in range(BATCH_SIZE)])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The text-prompted detector with the weights of Detectron2's."""
    closed = make_model()
    train(closed, num_iterations=100)
    path = tmp_path_factory.mktemp("closed_set") / "closed.pth"
    save_weights(closed, path)
    model = make_model(
        *("MODEL.META_ARCHITECTURE", "OpenVocabularyRetinaNet"),
        *("MODEL.CLOSED_SET.CLASS_NAMES", CLOSED),
        *("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
        *("MODEL.LANGUAGE_BACKBONE.MODEL", ENCODER, "MODEL.LANGUAGE_BACKBONE.WEIGHTS", ENCODER),
        *("MODEL.LANGUAGE_BACKBONE.FREEZE", True),
    )
    GLIPv2Checkpointer(model).load(str(path))
    return model.eval()


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, Any]]:
    return [scene(100_000 + seed) for seed in range(30)]


def ap50(model: nn.Module, names: list[str], scenes: list[dict[str, Any]]) -> float:
    """Mean AP50 of the drawn classes, the k-th of which is detected by the k-th name."""
    detections, objects = [], []
    for i, x in enumerate(scenes):
        with torch.no_grad():
            (result,) = model([{"image": x["image"], "classes": names}])
        found, truth = result["instances"], x["instances"]
        for box, class_, score in zip(
            xywh(found.pred_boxes), found.pred_classes.tolist(), found.scores.tolist(), strict=True
        ):
            detections.append(Detection(i, class_, box, score))
        for box, class_ in zip(xywh(truth.gt_boxes), truth.gt_classes.tolist(), strict=True):
            objects.append(GroundTruth(i, class_, box))
    per_class = [
        average_precision(
            [one for one in detections if one.category == c],
            [one for one in objects if one.category == c],
            thresholds=[0.5],
        )
        for c in range(len(names))
    ]
    return float(np.mean(per_class))


def xywh(boxes: Boxes) -> list[list[float]]:
    x1, y1, x2, y2 = boxes.tensor.unbind(dim=1)
    return torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()


@pytest.mark.parametrize(
    "names",
    [
        ["circle", "star", "square", "cross"],
        ["round disc", "five-pointed star", "square tile", "cross sign"],
        # Colours are not in the names of the detector's classes.
        ["red circle", "blue star", "green square", "yellow cross"],
    ],
    ids=["closed class names", "synonyms", "combinations"],
)
def test_right_names_have_a_high_ap_and_wrong_names_a_low_one(
    names: list[str], model: nn.Module, scenes: list[dict[str, Any]]
) -> None:
    right = ap50(model, names, scenes)
    wrong = [ap50(model, names[k:] + names[:k], scenes) for k in range(1, len(names))]
    assert right > 70
    assert max(wrong) < 30


def test_names_without_evidence_are_not_detected_and_can_be_trained(
    model: nn.Module, scenes: list[dict[str, Any]]
) -> None:
    names = ["cat", "teapot", "violin", "bus"]
    assert ap50(model, names, scenes) == 0
    finetuned = copy.deepcopy(model)
    train(finetuned, num_iterations=60, classes=names)
    assert ap50(finetuned.eval(), names, scenes) > 50
    assert ap50(model, names, scenes) == 0
