"""Detectron2's trainers on this project's configs, and its loaders in this project's trainer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, train_loop
from detectron2.engine.defaults import default_writers
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as detectron2_optimizer
from detectron2.utils.events import EventStorage
from helpers.pipelines import VAL, own_mapper, written_metrics
from torch import nn

from glipv2_d2 import get_config
from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.engine.train.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
CLIP = "SOLVER.CLIP_GRADIENTS."
NOT_IN_DETECTRON2 = "which Detectron2's solver does not have"


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[float]:
    """The parameters, from 0, after one step with the gradients 3 and 4."""
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    optimizer.step()
    return [parameter.item() for parameter in parameters]


def two_parameters() -> nn.Module:
    module = nn.Module()
    module.first = nn.Parameter(torch.zeros(1))
    module.second = nn.Parameter(torch.zeros(1))
    return module


def clipping_cfg(clip_type: str) -> CfgNode:
    cfg = get_config("glip-t")
    cfg.merge_from_list([f"{CLIP}CLIP_TYPE", clip_type, f"{CLIP}CLIP_VALUE", 2.0])
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", 0.0])
    return cfg


@pytest.mark.parametrize(
    ("clip_type", "expected"),
    [("value", [-2.0, -2.0]), ("norm", [-2.0, -2.0]), ("full_model", [-1.2, -1.6])],
)
def test_clip_types_of_detectron2_clip_each_parameter_and_full_model_all(
    clip_type: str, expected: list[float]
) -> None:
    model = two_parameters()
    optimizer = build_optimizer(clipping_cfg(clip_type), model)
    assert step(optimizer, list(model.parameters())) == pytest.approx(expected)


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_clipping_is_the_same_in_detectron2s_solver(clip_type: str) -> None:
    cfg = clipping_cfg(clip_type)
    ours, theirs = two_parameters(), two_parameters()
    assert step(build_optimizer(cfg, ours), list(ours.parameters())) == step(
        detectron2_optimizer(cfg, theirs), list(theirs.parameters())
    )


def test_detectron2s_solver_clips_each_parameter_of_a_full_model_config_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = two_parameters()
    optimizer = detectron2_optimizer(clipping_cfg("full_model"), model)
    assert step(optimizer, list(model.parameters())) == pytest.approx([-2.0, -2.0])
    (message,) = [r.getMessage() for r in caplog.records if r.name == "glipv2_d2.gradient_clipping"]
    assert NOT_IN_DETECTRON2 in message
    assert "param_groups.build_optimizer(cfg, model)" in message
    assert "parameter groups do not match" in message


def test_detectron2s_solver_builds_the_schedule_of_every_shipped_config() -> None:
    for path in sorted(CONFIGS.rglob("*.yaml")):
        cfg = load_config(path)
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = detectron2_optimizer(cfg, two_parameters())
        build_lr_scheduler(cfg, optimizer)
        optimizer.step()


def test_an_unknown_clip_type_is_still_an_error_of_detectron2() -> None:
    with pytest.raises(ValueError, match="'nonsense' is not a valid GradientClipType"):
        detectron2_optimizer(clipping_cfg("nonsense"), two_parameters())


@pytest.mark.parametrize("model", ["cfg", "two_stage"])
def test_detectron2s_trainer_trains(model: str, request: pytest.FixtureRequest) -> None:
    cfg = request.getfixturevalue(model)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    after = trainer.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert written_metrics(cfg)["total_loss"] > 0


def test_a_plain_loop_over_detectron2s_parts_trains(cfg: CfgNode) -> None:
    Path(cfg.OUTPUT_DIR).mkdir()
    model = DefaultTrainer.build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    trainer = SimpleTrainer(model, build_detection_train_loader(cfg), optimizer)
    with EventStorage() as storage:
        for trainer.iter in range(2):
            storage.iter = trainer.iter
            trainer.run_step()
            scheduler.step()
        for writer in default_writers(cfg.OUTPUT_DIR, 2):
            writer.write()
    assert written_metrics(cfg)["loss_token"] > 0


def test_detectron2s_amp_trainer_trains_with_the_autocast_of_the_cpu(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    # AMPTrainer requires CUDA and uses its autocast; the rest is the same for every device.
    with_cuda = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: True), Tensor=torch.Tensor
    )
    monkeypatch.setattr(train_loop, "torch", with_cuda)
    monkeypatch.setattr(torch.cuda.amp, "autocast", partial(torch.autocast, "cpu"))
    model = DefaultTrainer.build_model(cfg).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(cfg, model)
    trainer = AMPTrainer(
        model,
        build_detection_train_loader(cfg),
        optimizer,
        grad_scaler=torch.amp.GradScaler("cpu", init_scale=2.0),
        precision=torch.bfloat16,
    )
    with EventStorage() as storage:
        trainer.run_step()
        assert storage.latest()["loss_token"][0] > 0
    assert all(p.dtype == torch.float32 for p in model.parameters())
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert "backbone.bottom_up.patch_embed.proj.weight" in changed


MAPPERS: dict[str, Callable[[CfgNode], Any]] = {
    "detectron2": lambda cfg: DatasetMapper(cfg, is_train=True),
    "ours": lambda cfg: GroundingMapper(cfg, is_train=True),
    "tutorial": lambda _: own_mapper,
}


@pytest.mark.parametrize("kind", MAPPERS)
def test_this_projects_trainer_trains_with_detectron2s_loader(cfg: CfgNode, kind: str) -> None:
    class StockLoader(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build_detection_train_loader(cfg, mapper=MAPPERS[kind](cfg))

    cfg.SOLVER.ACCUMULATION_STEPS = 2
    trainer = StockLoader(cfg)
    assert trainer.data_loader.batch_size == 1
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert written_metrics(cfg)["total_loss"] > 0


def test_a_run_with_another_loader_resumes_and_reports_the_order_of_its_data(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    class StockLoader(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build_detection_train_loader(cfg)

    cfg.SEED = -1
    first = StockLoader(cfg)
    first.resume_or_load(resume=False)
    first.train()
    cfg.SOLVER.MAX_ITER = 3
    resumed = StockLoader(cfg)
    with caplog.at_level(logging.INFO):
        resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert resumed.seed == first.seed
    assert "starts its order of the data anew" in caplog.text
    resumed.train()


def test_the_loader_takes_another_mapper_or_other_augmentations(cfg: CfgNode) -> None:
    (x, _) = next(iter(build_train_loader(cfg, augmentations=[T.Resize((48, 40))])))
    assert x["image"].shape == (3, 48, 40)
    (x, _) = next(iter(build_train_loader(cfg, mapper=own_mapper)))
    assert "prompt" not in x
    with pytest.raises(ValueError, match="mapper and augmentations are both given"):
        build_train_loader(cfg, mapper=own_mapper, augmentations=[])


def test_the_test_loader_takes_another_mapper(cfg: CfgNode) -> None:
    mapper = DatasetMapper(cfg, is_train=False, augmentations=[T.Resize((48, 40))])
    ((x,), *others) = build_test_loader(cfg, VAL, mapper=mapper)
    assert x["image"].shape == (3, 48, 40)
    assert x["dataset_name"] == VAL
    assert len(others) == 2


AUGMENTATIONS: dict[str, list[Any]] = {
    "large-scale jitter": [
        *("INPUT.LARGE_SCALE_JITTER.ENABLED", True, "INPUT.LARGE_SCALE_JITTER.IMAGE_SIZE", 48)
    ],
    "crop": [
        "INPUT.CROP.ENABLED",
        True,
        "INPUT.CROP.TYPE",
        "absolute",
        "INPUT.CROP.SIZE",
        [32, 40],
    ],
    "rotation": ["INPUT.RANDOM_ROTATION", [-20.0, 20.0], "MODEL.MASK_ON", True],
}


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_an_augmentation_of_the_config_moves_the_boxes_with_the_image(
    cfg: CfgNode, drawn: Path, kind: str
) -> None:
    """A box of the drawn scenes still surrounds its shape: it contains the mask's box."""
    del drawn
    cfg.merge_from_list([*AUGMENTATIONS[kind], "INPUT.MASK_FORMAT", "bitmask"])
    cfg.MODEL.MASK_ON = True
    np.random.seed(0)  # noqa: NPY002 - the mapper draws from the global state
    sizes, num_boxes = set(), 0
    for batch, _ in zip(build_train_loader(cfg), range(6), strict=False):
        for x in batch:
            sizes.add(tuple(x["image"].shape[1:]))
            instances = x["instances"]
            assert instances.image_size == tuple(x["image"].shape[1:])
            inner = instances.gt_masks.get_bounding_boxes().tensor
            outer = instances.gt_boxes.tensor
            is_seen = instances.gt_masks.tensor.flatten(1).any(dim=1)
            assert (outer[is_seen, :2] <= inner[is_seen, :2] + 2).all()
            assert (outer[is_seen, 2:] >= inner[is_seen, 2:] - 2).all()
            num_boxes += len(instances)
    assert num_boxes > 6
    if kind == "large-scale jitter":
        assert max(max(size) for size in sizes) <= 48
        assert len(sizes) > 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RANDOM_ROTATION", [10.0]),
        ("INPUT.RANDOM_ROTATION", [20.0, -20.0]),
        ("INPUT.LARGE_SCALE_JITTER.MIN_SCALE", 0.0),
    ],
)
def test_an_invalid_augmentation_is_an_error_with_its_key(
    cfg: CfgNode, key: str, value: Any
) -> None:
    cfg.merge_from_list([key, value, "INPUT.LARGE_SCALE_JITTER.ENABLED", True])
    with pytest.raises(ValueError, match=key.rpartition(".")[0]):
        GroundingMapper(cfg, is_train=True)


def test_a_checkpoint_of_detectron2s_trainer_says_what_does_not_match(cfg: CfgNode) -> None:
    DefaultTrainer(cfg).checkpointer.save("model_final")
    trainer = Trainer(cfg)
    with pytest.raises(ValueError, match=r"(?s)does not match this \w*AdamW: .*momentum.*betas"):
        trainer.resume_or_load(resume=True)


def test_a_run_of_detectron2s_trainer_with_the_same_optimizer_is_resumed(cfg: CfgNode) -> None:
    class SameOptimizer(DefaultTrainer):
        @classmethod
        def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
            return build_optimizer(cfg, model)

    first = SameOptimizer(cfg)
    first.resume_or_load(resume=False)
    first.train()
    cfg.SOLVER.MAX_ITER = 3
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()


@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
def test_detectron2s_trainer_says_that_the_parameter_groups_of_a_run_do_not_match(
    cfg: CfgNode, optimizer: str
) -> None:
    cfg.SOLVER.OPTIMIZER = optimizer
    Trainer(cfg).checkpointer.save("model_final", iteration=0)
    with pytest.raises(ValueError, match="parameter group"):
        DefaultTrainer(cfg).resume_or_load(resume=True)
