"""Fine-tuning on a folder in COCO's format: configs, training, evaluation before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from glipv2_d2.data.build import load_dataset
from glipv2_d2.data.custom import register_custom
from glipv2_d2.engine.finetune.coco_folder import CocoFolder, open_coco_folder
from glipv2_d2.engine.finetune.few_shot import COPIES, few_shot_subset
from glipv2_d2.engine.finetune.finetune_report import Comparison, FinetuneReport
from glipv2_d2.engine.finetune.recipes import MAX_EPOCHS, recipe
from glipv2_d2.engine.finetune.tuning import DELTA_FILE, load_model
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.trainer import Trainer
from glipv2_d2.file_writing import atomic_open, dump_json


@dataclass(frozen=True)
class FinetuneArguments:
    """Arguments of a fine-tuning.

    Attributes:
        data: a folder, see :func:`~glipv2_d2.engine.finetune.coco_folder.open_coco_folder`.
        config_file, weights: of the base model.
        output: folder of the delta, the report and checkpoints.
        policy: which parameters are trained, see :mod:`glipv2_d2.engine.finetune.policies`.
        shots: images per class; None: all images.
        seed: of the training and of the choice of shots.
        base_sets: datasets on which forgetting is measured; None: ``DATASETS.TEST`` of the config.
        opts: config overrides, with precedence over the recipe.
        resume: continue an interrupted training.
    """

    data: Path
    config_file: str
    weights: Path
    output: Path
    policy: str
    shots: int | None
    seed: int
    base_sets: Sequence[str] | None
    opts: Sequence[str]
    resume: bool = False


@dataclass(frozen=True)
class FinetuneJob:
    """A validated fine-tuning; :func:`prepare` makes it.

    Attributes:
        base_cfg: config of the base model, with the new datasets.
        cfg: config of the training.
        target: the dataset of the report.
        num_images: training images with boxes.
        base_sets, absent_base_sets: datasets of the base with and without files on this machine.
    """

    arguments: FinetuneArguments
    base_cfg: CfgNode
    cfg: CfgNode
    target: str
    num_images: int
    base_sets: list[str]
    absent_base_sets: list[str]

    def run(self) -> FinetuneReport:
        """Evaluate the base, train, and evaluate the base with the written delta."""
        output = self.arguments.output
        datasets = [self.target, *self.base_sets]
        before = _evaluate(self.base_cfg, datasets, output / "before")
        training = _train(self.cfg, self.arguments.resume)
        tuned_cfg = self.base_cfg.clone()
        tuned_cfg.defrost()
        tuned_cfg.MODEL.TUNING.DELTA = str(output / DELTA_FILE)
        after = _evaluate(tuned_cfg, datasets, output / "after")
        target, *base_sets = [Comparison(name, before[name], after[name]) for name in datasets]
        return FinetuneReport(self._summary(training), target, base_sets, self.absent_base_sets)

    def _summary(self, training: Mapping[str, int]) -> dict[str, Any]:
        arguments, delta = self.arguments, self.arguments.output / DELTA_FILE
        selection_set = self.cfg.DATASETS.TEST[0]
        return {
            "data": arguments.data,
            "base": arguments.weights,
            "config": arguments.config_file,
            "policy": arguments.policy,
            "shots": arguments.shots or "all",
            "seed": arguments.seed,
            "training images": self.num_images,
            **training,
            "delta": delta,
            "delta, MiB": f"{delta.stat().st_size / 2**20:.2f}",
            # Results on the split that selected the weights are too high.
            "test-time augmentation": "yes" if self.cfg.TEST.AUG.ENABLED else "no",
            "weights chosen on": f"{selection_set}{' too' if selection_set == self.target else ''}",
        }


def prepare(arguments: FinetuneArguments) -> FinetuneJob:
    """Load the folder, choose the shots, and build both configs.

    Raises:
        FileNotFoundError, ValueError: data, weights or config cannot be used.
    """
    folder = open_coco_folder(arguments.data)
    train = folder.train.coco
    if arguments.shots:
        train = few_shot_subset(train, shots=arguments.shots, seed=arguments.seed)
    num_images = _num_images_with_boxes(train)
    if num_images == 0:
        raise ValueError(f"'{folder.train.annotations}' has no boxes to train on")
    name, output, opts = arguments.data.resolve().name, arguments.output, arguments.opts
    splits = _store_splits(name, folder, train, output / "data")
    custom = [*load_config(arguments.config_file, opts).DATASETS.CUSTOM, *splits]
    # Values of named arguments have precedence over opts.
    fixed: dict[str, Any] = {"MODEL.WEIGHTS": str(arguments.weights), "DATASETS.CUSTOM": custom}
    base_cfg = load_config(arguments.config_file, [*opts, *_flatten(fixed)])
    fixed |= {
        "DATASETS.TRAIN": (f"{name}_train",),
        "DATASETS.TEST": (f"{name}_valid",),
        "OUTPUT_DIR": str(output),
        "SEED": arguments.seed,
    }
    training = recipe(arguments.policy, few_shot=bool(arguments.shots))
    # Every prompt has all class names, as at inference.
    training["DATALOADER.PROMPT.MAX_NEGATIVES"] = len(folder.train.class_names)
    cfg = load_config(arguments.config_file, [*_flatten(training), *opts])
    images_per_epoch = num_images * COPIES.get(arguments.shots or 0, 1)
    training |= _schedule(math.ceil(images_per_epoch / cfg.SOLVER.IMS_PER_BATCH))
    cfg = load_config(arguments.config_file, [*_flatten(training), *opts, *_flatten(fixed)])
    register_custom(custom)
    base_sets = base_cfg.DATASETS.TEST if arguments.base_sets is None else arguments.base_sets
    available = [dataset for dataset in base_sets if _is_available(dataset)]
    return FinetuneJob(
        arguments,
        base_cfg,
        cfg,
        target=f"{name}_valid" if folder.test is None else f"{name}_test",
        num_images=num_images,
        base_sets=available,
        absent_base_sets=[dataset for dataset in base_sets if dataset not in available],
    )


def _store_splits(
    name: str, folder: CocoFolder, train: dict[str, Any], output: Path
) -> list[dict[str, str]]:
    """Write the annotations of each split, and return its entry of ``DATASETS.CUSTOM``."""
    output.mkdir(parents=True, exist_ok=True)
    splits = {"train": folder.train, "valid": folder.valid, "test": folder.test}
    entries = []
    for kind, split in splits.items():
        if split is not None:
            path = output / f"{name}_{kind}.json"
            coco = train if kind == "train" else split.coco
            # Without their groups, no class is taken for a group when the file is read again.
            classes = [{"id": c["id"], "name": c["name"]} for c in coco["categories"]]
            with atomic_open(path) as file:
                file.write(dump_json({**coco, "categories": classes}).encode())
            entries.append({"name": path.stem, "json": str(path), "images": str(split.images)})
    return entries


def _num_images_with_boxes(coco: dict[str, Any]) -> int:
    return len({a["image_id"] for a in coco["annotations"] if not a.get("iscrowd", 0)})


def _schedule(iterations_per_epoch: int) -> dict[str, Any]:
    """The config values that a recipe specifies in epochs."""
    return {
        "SOLVER.MAX_ITER": MAX_EPOCHS * iterations_per_epoch,
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": iterations_per_epoch,
        "TEST.EVAL_PERIOD": iterations_per_epoch,
    }


def _flatten(values: Mapping[str, Any]) -> list[Any]:
    return list(chain.from_iterable(values.items()))


def _is_available(dataset: str) -> bool:
    try:
        load_dataset(dataset, filter_empty=False)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _evaluate(cfg: CfgNode, datasets: list[str], output: Path) -> dict[str, dict[str, float]]:
    """Box APs of ``MODEL.WEIGHTS`` with ``MODEL.TUNING.DELTA``, per dataset.

    With ``TEST.AUG.ENABLED`` those with test-time augmentation.
    """
    task = "bbox_TTA" if cfg.TEST.AUG.ENABLED else "bbox"
    model = load_model(cfg)
    results = {}
    for dataset in datasets:
        dataset_cfg = cfg.clone()
        dataset_cfg.defrost()
        dataset_cfg.DATASETS.TEST = (dataset,)
        dataset_cfg.OUTPUT_DIR = str(output)
        results[dataset] = dict(Trainer.test(dataset_cfg, model)[task])
    return results


def _train(cfg: CfgNode, resume: bool) -> dict[str, int]:
    """Write the delta to ``OUTPUT_DIR``; return numbers for the report."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    trained = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    return {
        "trained parameters": sum(trained),
        "iterations": min(trainer.iter + 1, cfg.SOLVER.MAX_ITER),
    }
