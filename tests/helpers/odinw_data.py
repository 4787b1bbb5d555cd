"""Two sets laid out as in the ODinW release, and a model whose AP depends on its weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from helpers.stand_in import MeanColour, configure
from helpers.tiny_coco import write_coco
from torch import Tensor

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.data.readers.odinw import odinw_datasets, register_odinw
from glipv2_d2.engine.setup import load_config

SETS = ("pothole", "CottontailRabbits")
FILE = "annotations_without_background.json"
ROOT = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))

CONFIG = """
MODEL: {META_ARCHITECTURE: ShiftedBox, DEVICE: cpu}
INPUT: {MIN_SIZE_TRAIN: [32, 40], MIN_SIZE_TEST: 32}
DATALOADER: {NUM_WORKERS: 0, ASPECT_RATIO_GROUPING: False}
VERSION: 2
"""


@META_ARCH_REGISTRY.register()
class ShiftedBox(MeanColour):
    """Detects the box of each image shifted by at most 3 pixels, by a function of its weights."""

    def forward(self, inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        if self.training:
            return super().forward(inputs)
        shift = 3 * torch.sin(1000 * self.backbone.weight.double().sum()).item()
        box = Boxes([[4.0 + shift, 6.0, 24.0 + shift, 22.0]])
        labels = {"scores": torch.tensor([0.9]), "pred_classes": torch.tensor([0])}
        sizes = [(x["height"], x["width"]) for x in inputs]
        return [{"instances": Instances(size, pred_boxes=box, **labels)} for size in sizes]


def write_release(root: Path) -> None:
    """Training, few-shot, validation and test files of each set, with noise images."""
    for key in SETS:
        entry = odinw_datasets()[key]
        for split, count in (("train", 8), ("val", 2), ("test", 3)):
            folder = (root / "odinw" / entry["splits"][split]).parent
            annotations, images = write_coco(folder, num_images=count, names=entry["classes"])
            for image in images.iterdir():
                shutil.move(image, folder)
            content = json.loads(annotations.read_text())
            for part in content["annotations"]:
                part["category_id"] = 1
            content["categories"][0]["id"] = 1
            annotations.unlink()
            (folder / FILE).write_text(json.dumps(content))
            for shots in (1, 3):
                for seed in (3, 30):
                    chosen = {*range(seed % 2, shots + seed % 2)}
                    few = {
                        "categories": content["categories"],
                        "images": [x for x in content["images"] if x["id"] in chosen],
                        "annotations": [
                            x for x in content["annotations"] if x["image_id"] in chosen
                        ],
                    }
                    name = f"fewshot_{split}_shot{shots}_seed{seed}.json"
                    (folder / name).write_text(json.dumps(few))


@contextmanager
def registered_below(root: Path) -> Iterator[None]:
    """The sets of :func:`write_release` are those below ``root``, not those of this machine."""
    _register(root)
    try:
        yield
    finally:
        _register(Path(ROOT))


def _register(root: Path) -> None:
    for name in DatasetCatalog.list():
        if name.startswith("odinw_") and any(f"_{key}_" in name for key in SETS):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)
    register_odinw(str(root))


def write_base(folder: Path) -> list[str]:
    """Write config and weights of the model; returns their arguments."""
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, "absent_set", "")
    torch.manual_seed(0)
    save_weights(ShiftedBox(cfg), folder / "base.pth")
    # Not all keys, which are slow to load.
    (folder / "base.yaml").write_text(CONFIG)
    return ["--config", str(folder / "base.yaml"), "--weights", str(folder / "base.pth")]
