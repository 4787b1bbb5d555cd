"""The first steps of a training recipe: its data, losses, optimizer and evaluation."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco, register_all_lvis
from detectron2.modeling import build_model
from torch import nn

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.data.builtin import register_builtin
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.trainer import RESULTS_FILE, Trainer
from glipv2_d2.layers.checkpoint_prefixes import full_state_dict

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("configs/glip", "configs/pretrain", "configs/finetune", "configs/joint", "configs/zero_shot"),
    *("projects/VQA/configs", "projects/Captioning/configs"),
)
RECIPES = [
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.yaml"))
    if not path.name.startswith("Base-")
]
CATALOGS = (DatasetCatalog, MetadataCatalog)


@dataclass(frozen=True)
class FirstSteps:
    """What the first iterations of a training did.

    Attributes:
        parameters: number of elements of each parameter of the model.
        trained: names of the parameters of the optimizer.
        moved: names of the parameters and buffers whose bits changed.
        losses: the largest value of each, by name.
        results: of the evaluation: dataset -> task -> metrics.
        seconds_to_first_batch: CPU time from building the model on.
    """

    parameters: dict[str, int]
    trained: set[str]
    moved: set[str]
    losses: dict[str, float]
    results: dict[str, dict[str, dict[str, float]]]
    seconds_to_first_batch: float


@contextmanager
def registered_below(root: str) -> Iterator[None]:
    """The built-in datasets are those below ``root``; their files must exist before."""
    before = [dict(catalog.data) for catalog in CATALOGS]
    for catalog in CATALOGS:
        catalog.data.clear()
    register_all_coco(root)
    register_all_lvis(root)
    register_builtin(root)
    try:
        yield
    finally:
        for catalog, content in zip(CATALOGS, before, strict=True):
            catalog.data.clear()
            catalog.data.update(content)


def recipe_config(recipe: str, output: Path, opts: Sequence[Any]) -> CfgNode:
    """The config of a recipe for its first steps on the CPU, without warm-up.

    Text encoders start from random weights. A fine-tuning starts from random weights of its own
    model, which :func:`write_base` writes.
    """
    common = ["MODEL.DEVICE", "cpu", "MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "SEED", 3]
    common += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.WARMUP_ITERS", 0, "OUTPUT_DIR", str(output)]
    cfg = load_config(ROOT / recipe, [*common, *opts]).clone()
    cfg.defrost()
    if cfg.MODEL.TUNING.NAME:
        cfg.MODEL.WEIGHTS = str(output / "base.pth")
    # Also in the last iteration.
    cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_ITER
    if cfg.SOLVER.STEPS:
        cfg.SOLVER.STEPS = (cfg.SOLVER.MAX_ITER - 1,)
    cfg.freeze()
    return cfg


def write_base(cfg: CfgNode) -> None:
    """Write random weights to ``MODEL.WEIGHTS``, where the recipe is one of fine-tuning."""
    if cfg.MODEL.WEIGHTS:
        torch.manual_seed(0)
        save_weights(build_model(cfg), Path(cfg.MODEL.WEIGHTS))


def first_steps(cfg: CfgNode) -> FirstSteps:
    """Train for ``SOLVER.MAX_ITER`` iterations and evaluate."""
    torch.manual_seed(0)
    begin = time.process_time()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    model = trainer.checkpointer.model
    seconds_to_build = time.process_time() - begin
    losses: dict[str, float] = {}
    batches_at: list[float] = []

    def keep_losses(module: nn.Module, _args: object, outputs: Any) -> None:
        if module.training:
            values = {name: loss.item() for name, loss in outputs.items()}
            losses.update({name: max(x, losses.get(name, x)) for name, x in values.items()})

    before = digests(model)
    begin = time.process_time()
    model.register_forward_pre_hook(lambda *_: batches_at.append(time.process_time()))
    model.register_forward_hook(keep_losses)
    trainer.train()
    after = digests(model)
    of_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    return FirstSteps(
        parameters={name: p.numel() for name, p in model.named_parameters()},
        trained={name for name, p in model.named_parameters() if id(p) in of_optimizer},
        moved={name for name in after if after[name] != before[name]},
        losses=losses,
        results=json.loads((Path(cfg.OUTPUT_DIR) / RESULTS_FILE).read_text()),
        seconds_to_first_batch=seconds_to_build + batches_at[0] - begin,
    )


def digests(model: nn.Module) -> dict[str, bytes]:
    """A hash of the bits of each tensor of the state, also of those that checkpoints omit."""
    return {
        name: hashlib.blake2b(value.detach().numpy().tobytes()).digest()
        for name, value in full_state_dict(model).items()
    }
