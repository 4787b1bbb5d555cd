"""What a fine-tuning needs before it starts: data, configs and schedule, all of them checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.loading import load_dataset
from glipv2_d2.data.replaceable import is_builtin
from glipv2_d2.engine.finetune.coco_folder import published_shots
from glipv2_d2.engine.finetune.dataset_folder import open_dataset_folder
from glipv2_d2.engine.finetune.few_shot import few_shot_subset
from glipv2_d2.engine.finetune.finetune_trainer import MAX_LIMITED_ITERATIONS
from glipv2_d2.engine.finetune.job import FinetuneJob
from glipv2_d2.engine.finetune.recipes import FITTED_SCHEDULE, model_recipe
from glipv2_d2.engine.finetune.splits import SPLIT_NAMES, DatasetFolder
from glipv2_d2.engine.finetune.time_plan import MAX_EVALUATIONS
from glipv2_d2.engine.finetune.training_config import flatten, training_config, until_no_gain
from glipv2_d2.engine.setup import load_config
from glipv2_d2.file_writing import atomic_open, dump_json
from glipv2_d2.model_zoo import ModelFiles


@dataclass(frozen=True)
class FinetuneArguments:
    """Arguments of a fine-tuning.

    Attributes:
        data: a folder, see :mod:`glipv2_d2.engine.finetune.dataset_folder`.
        base: the base model as its description names it: a name, or a file of weights.
        files: of the base model; the training of a fine-tuned one is continued.
        output: folder of the delta, the report and checkpoints.
        policy: which parameters are trained, see :mod:`glipv2_d2.engine.finetune.policies`.
        epochs: passes over the images; None: until no evaluation improves, by the recipe.
        minutes: time limit of all, evaluations and report included, in place of ``epochs``.
        batch: images of an iteration; None: the recipe's.
        shots: images per class; None: all images.
        seed: of the training and of the choice of shots.
        base_sets: datasets on which forgetting is measured; None: ``DATASETS.TEST`` of the config.
        writers: values of ``WRITERS``, besides TensorBoard.
        opts: config overrides, with precedence over the recipe.
        resume: continue an interrupted training.
    """

    data: Path
    base: str
    files: ModelFiles
    output: Path
    policy: str = "full"
    epochs: float | None = None
    minutes: float | None = None
    batch: int | None = None
    shots: int | None = None
    seed: int = 3
    base_sets: Sequence[str] | None = None
    writers: Sequence[str] = ()
    opts: Sequence[str] = field(default_factory=list)
    resume: bool = False


def prepare(arguments: FinetuneArguments) -> FinetuneJob:
    """Load the folder, choose the shots, and build both configs.

    Raises:
        FileNotFoundError, ValueError: data, weights or config cannot be used.
    """
    _check_numbers(arguments)
    if arguments.output.resolve() == arguments.files.config.resolve().parent:
        raise ValueError(
            f"'{arguments.output}' has the model that is fine-tuned: choose another output folder"
        )
    folder = open_dataset_folder(arguments.data)
    train, notes = folder.train.coco, list(folder.notes)
    if arguments.shots:
        train, note = choose_shots(folder, arguments.shots, arguments.seed)
        notes.append(note)
    num_images = _num_images_with_boxes(train)
    if num_images == 0:
        raise ValueError(f"'{folder.train.annotations}' has no boxes to train on")
    name, output, opts = _dataset_name(arguments.data), arguments.output, arguments.opts
    splits = _store_splits(name, folder, train, output / "data")
    config = arguments.files.config
    given = load_config(config, opts)
    of_model = model_recipe(arguments.policy, given.MODEL.TUNING.RECIPE)
    architecture = {key: value for key, value in of_model.items() if key.startswith("MODEL.")}
    custom = [*given.DATASETS.CUSTOM, *splits]
    # Values of named arguments have precedence over opts.
    fixed: dict[str, Any] = {
        "MODEL.WEIGHTS": str(arguments.files.weights),
        "DATASETS.CUSTOM": custom,
    }
    base_cfg = load_config(config, [*flatten(architecture), *opts, *flatten(fixed)])
    fixed |= {
        "DATASETS.TRAIN": (f"{name}_train",),
        "DATASETS.TRAIN_REPEAT_FACTOR": [],
        "DATASETS.TEST": (f"{name}_valid",),
        "OUTPUT_DIR": str(output),
        "SEED": arguments.seed,
        "WRITERS": list(arguments.writers),
    }
    cfg = training_config(
        config,
        opts,
        policy=arguments.policy,
        shots=arguments.shots,
        num_images=num_images,
        num_classes=len(folder.train.class_names),
        schedule=functools.partial(_schedule, arguments),
        fixed=fixed,
        batch=arguments.batch,
    )
    register_custom(custom)
    base_sets = base_cfg.DATASETS.TEST if arguments.base_sets is None else arguments.base_sets
    available = [dataset for dataset in base_sets if _is_available(dataset)]
    return FinetuneJob(
        base=arguments.base,
        base_cfg=base_cfg,
        cfg=cfg,
        class_names=folder.train.class_names,
        about=_about(arguments, folder, num_images),
        notes=notes,
        selection_set=f"{name}_valid",
        target=f"{name}_valid" if folder.test is None else f"{name}_test",
        base_sets=available,
        absent_base_sets=[dataset for dataset in base_sets if dataset not in available],
        seconds=None if arguments.minutes is None else 60 * arguments.minutes,
        resume=arguments.resume,
    )


def choose_shots(folder: DatasetFolder, shots: int, seed: int) -> tuple[dict[str, Any], str]:
    """The training images of a published few-shot split, or sampled ones, and which they are.

    Raises:
        ValueError: the published file is invalid, or no image has boxes.
    """
    published = published_shots(folder, shots, seed)
    if published is not None:
        chosen = published.coco
        source = f"of the published split '{published.annotations.name}'"
    else:
        chosen = few_shot_subset(folder.train.coco, shots=shots, seed=seed)
        source = f"sampled from the training images with seed {seed}"
    return chosen, f"--shots {shots}: {len(chosen['images'])} images, {source}"


def _check_numbers(arguments: FinetuneArguments) -> None:
    if arguments.epochs is not None and arguments.minutes is not None:
        raise ValueError("--epochs and --minutes exclude each other: pass one of them")
    for option in ("epochs", "minutes", "batch"):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{option} is {value}; it must be more than 0")


def _about(arguments: FinetuneArguments, folder: DatasetFolder, num_images: int) -> dict[str, Any]:
    length = "until no evaluation improves"
    if arguments.minutes is not None:
        length = f"--minutes {arguments.minutes:g}"
    elif arguments.epochs is not None:
        length = f"--epochs {arguments.epochs:g}"
    return {
        "data": arguments.data,
        "layout": folder.layout,
        "base": arguments.base,
        "config": arguments.files.config,
        "policy": arguments.policy,
        "length of the training": length,
        "shots": arguments.shots or "all",
        "seed": arguments.seed,
        "classes": len(folder.train.class_names),
        "training images": num_images,
    }


def _store_splits(
    name: str, folder: DatasetFolder, train: dict[str, Any], output: Path
) -> list[dict[str, str]]:
    """Write the annotations of each split, and return its entry of ``DATASETS.CUSTOM``."""
    splits = {"train": folder.train, "valid": folder.valid, "test": folder.test}
    entries = []
    for kind, split in splits.items():
        if split is None:
            continue
        path = output / f"{name}_{kind}.json"
        coco = train if kind == "train" else split.coco
        # Without their groups, no class is taken for a group when the file is read again.
        classes = [{"id": c["id"], "name": c["name"]} for c in coco["categories"]]
        if comm.is_main_process():
            output.mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file:
                file.write(dump_json({**coco, "categories": classes}).encode())
        entries.append({"name": path.stem, "json": str(path), "images": str(split.images)})
    comm.synchronize()
    return entries


def _dataset_name(folder: Path) -> str:
    """The folder's name, with an ending if built-in datasets are named so: those of "drawn"."""
    name = folder.resolve().name
    return f"{name}_folder" if any(is_builtin(f"{name}_{kind}") for kind in SPLIT_NAMES) else name


def _num_images_with_boxes(coco: dict[str, Any]) -> int:
    return len({a["image_id"] for a in coco["annotations"] if not a.get("iscrowd", 0)})


def _schedule(arguments: FinetuneArguments, iterations_per_epoch: float) -> dict[str, Any]:
    """The config values that depend on the length of the training."""
    if arguments.minutes is not None:
        # Until a few iterations were measured.
        period = max_iter = MAX_LIMITED_ITERATIONS
    elif arguments.epochs is not None:
        max_iter = max(1, math.ceil(arguments.epochs * iterations_per_epoch))
        count = min(max(1, math.ceil(arguments.epochs)), MAX_EVALUATIONS)
        period = math.ceil(max_iter / count)
    else:
        return until_no_gain(iterations_per_epoch)
    return {
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
        **FITTED_SCHEDULE,
    }


def _is_available(dataset: str) -> bool:
    try:
        load_dataset(dataset, filter_empty=False)
    except (FileNotFoundError, ValueError):
        return False
    return True
