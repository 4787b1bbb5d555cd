#!/usr/bin/env python
"""Teach a trained model your own data: a folder in COCO's format in, a small file and a report out.

python tools/finetune.py --data my_data --policy full
python tools/finetune.py --data my_data --weights glip_tiny_model_o365_goldg_cc_sbu.pth \
    --config-file configs/glip/glip_swin_t.yaml --policy prompt --shots 10

The folder has train/ and valid/ with _annotations.coco.json, as Roboflow exports it, or
annotations/*.json and images/. Without --weights the small model that comes with this project
learns. The output folder then has delta.pth, what changed in the weights:

    Predictor(config, weights, delta="output/finetune/delta.pth")
    tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS ... MODEL.TUNING.DELTA ...
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from glipv2_d2.checkpoint import atomic_open
from glipv2_d2.data.build import load_dataset
from glipv2_d2.data.custom import register_custom
from glipv2_d2.engine.coco_folder import CocoFolder, open_coco_folder
from glipv2_d2.engine.few_shot import COPIES, SEEDS, SHOTS, few_shot_subset
from glipv2_d2.engine.finetune_report import Comparison, FinetuneReport
from glipv2_d2.engine.host_memory import keep_freed_memory
from glipv2_d2.engine.policies import policy_names
from glipv2_d2.engine.recipes import MAX_EPOCHS, recipe
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.trainer import Trainer
from glipv2_d2.engine.tuning import DELTA_FILE, load_model

# The tokenizer runs inside loader processes that are forked after its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
MINI_CONFIG = ROOT / "configs" / "mini" / "glipv2_mini.yaml"
MINI_WEIGHTS = ROOT / "glipv2_d2" / "assets" / "glipv2_mini.pth"


@dataclass(frozen=True)
class Task:
    """What is to be done, all of it checked.

    Attributes:
        base_cfg: of the model before; knows the new data sets.
        cfg: of the training.
        target: data set that the report is about.
        train_images: number of them.
        base_sets, absent_base_sets: data sets of the base that are here, and that are not.
    """

    base_cfg: CfgNode
    cfg: CfgNode
    target: str
    train_images: int
    base_sets: list[str]
    absent_base_sets: list[str]


def prepare(args: argparse.Namespace) -> Task:
    """Read the folder, choose the shots, and make both configs.

    Raises:
        FileNotFoundError, ValueError: data, weights or config cannot be used.
    """
    folder = open_coco_folder(args.data)
    train = folder.train.coco
    if args.shots:
        train = few_shot_subset(train, shots=args.shots, seed=args.seed)
    num_images = _num_images_with_boxes(train)
    if num_images == 0:
        raise ValueError(f"'{folder.train.annotations}' has no box to learn from")
    name = args.data.resolve().name
    stored = _store_splits(name, folder, train, args.output / "data")
    custom = [*load_config(args.config_file, args.opts).DATASETS.CUSTOM, *stored]
    # What the command line names itself comes last, behind KEY VALUE.
    places: dict[str, Any] = {"MODEL.WEIGHTS": str(args.weights), "DATASETS.CUSTOM": custom}
    base_cfg = load_config(args.config_file, [*args.opts, *_flat(places)])
    places |= {
        "DATASETS.TRAIN": (f"{name}_train",),
        "DATASETS.TEST": (f"{name}_valid",),
        "OUTPUT_DIR": str(args.output),
        "SEED": args.seed,
    }
    training = recipe(args.policy, few_shot=bool(args.shots))
    # As at inference: an image is asked all names.
    training["DATALOADER.PROMPT.MAX_NEGATIVES"] = len(folder.train.class_names)
    cfg = load_config(args.config_file, [*_flat(training), *args.opts])
    images_per_epoch = num_images * COPIES.get(args.shots, 1)
    training |= _lengths(math.ceil(images_per_epoch / cfg.SOLVER.IMS_PER_BATCH))
    cfg = load_config(args.config_file, [*_flat(training), *args.opts, *_flat(places)])
    register_custom(custom)
    asked = base_cfg.DATASETS.TEST if args.base_sets is None else args.base_sets
    here = [dataset for dataset in asked if _is_here(dataset)]
    absent = [dataset for dataset in asked if dataset not in here]
    target = f"{name}_valid" if folder.test is None else f"{name}_test"
    return Task(base_cfg, cfg, target, num_images, here, absent)


def _store_splits(
    name: str, folder: CocoFolder, train: dict[str, Any], output: Path
) -> list[dict[str, str]]:
    """Write the annotations that are used, and give their entries of DATASETS.CUSTOM."""
    output.mkdir(parents=True, exist_ok=True)
    splits = {"train": folder.train, "valid": folder.valid, "test": folder.test}
    entries = []
    for kind, split in splits.items():
        if split is not None:
            path = output / f"{name}_{kind}.json"
            with atomic_open(path) as file:
                file.write(json.dumps(train if kind == "train" else split.coco).encode())
            entries.append({"name": path.stem, "json": str(path), "images": str(split.images)})
    return entries


def _num_images_with_boxes(coco: dict[str, Any]) -> int:
    return len({a["image_id"] for a in coco["annotations"] if not a.get("iscrowd", 0)})


def _lengths(epoch: int) -> dict[str, Any]:
    """What a recipe counts in epochs, given the iterations of one."""
    return {
        "SOLVER.MAX_ITER": MAX_EPOCHS * epoch,
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": epoch,
        "TEST.EVAL_PERIOD": epoch,
    }


def _flat(values: Mapping[str, Any]) -> list[Any]:
    return list(chain.from_iterable(values.items()))


def _is_here(dataset: str) -> bool:
    try:
        load_dataset(dataset, filter_empty=False)
    except (FileNotFoundError, ValueError):
        return False
    return True


def evaluate(cfg: CfgNode, datasets: list[str], output: Path) -> dict[str, dict[str, float]]:
    """Box APs of ``MODEL.WEIGHTS`` with ``MODEL.TUNING.DELTA``, per data set."""
    model = load_model(cfg)
    results = {}
    for dataset in datasets:
        one = cfg.clone()
        one.defrost()
        one.DATASETS.TEST = (dataset,)
        one.OUTPUT_DIR = str(output)
        results[dataset] = dict(Trainer.test(one, model)["bbox"])
    return results


def train(cfg: CfgNode, resume: bool) -> dict[str, int]:
    """Write the delta to OUTPUT_DIR; give numbers about the training."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    learned = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    return {
        "trained parameters": sum(learned),
        "iterations": min(trainer.iter + 1, cfg.SOLVER.MAX_ITER),
    }


def run(args: argparse.Namespace, task: Task) -> FinetuneReport:
    """Evaluate, train, evaluate the base with the file that was written."""
    datasets = [task.target, *task.base_sets]
    before = evaluate(task.base_cfg, datasets, args.output / "before")
    numbers = train(task.cfg, args.resume)
    delta = args.output / DELTA_FILE
    tuned_cfg = task.base_cfg.clone()
    tuned_cfg.defrost()
    tuned_cfg.MODEL.TUNING.DELTA = str(delta)
    after = evaluate(tuned_cfg, datasets, args.output / "after")
    target, *base_sets = [Comparison(name, before[name], after[name]) for name in datasets]
    chosen_on = task.cfg.DATASETS.TEST[0]
    about = {
        "data": args.data,
        "base": args.weights,
        "config": args.config_file,
        "policy": args.policy,
        "shots": args.shots or "all",
        "seed": args.seed,
        "training images": task.train_images,
        **numbers,
        "delta": delta,
        "delta, MiB": f"{delta.stat().st_size / 2**20:.2f}",
        # A split that chose the weights says too much of them.
        "weights chosen on": f"{chosen_on}{' too' if chosen_on == task.target else ''}",
    }
    return FinetuneReport(about, target, base_sets, task.absent_base_sets)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder in COCO's format")
    parser.add_argument("--weights", type=Path, default=MINI_WEIGHTS, help="of the base")
    parser.add_argument("--config-file", default=str(MINI_CONFIG), help="of the base")
    parser.add_argument("--policy", choices=policy_names(), default="full", help="what learns")
    parser.add_argument(
        "--shots",
        type=int,
        choices=SHOTS,
        help="learn from so many images per class instead of all; chosen by --seed",
    )
    parser.add_argument(
        "--seed", type=int, default=SEEDS[0], help=f"the published few-shot runs use {SEEDS}"
    )
    parser.add_argument("--output", type=Path, default=Path("output/finetune"))
    parser.add_argument(
        "--base-sets",
        type=lambda text: [name for name in text.split(",") if name],
        help='data sets on which to look for forgetting, "a,b"; default DATASETS.TEST of the '
        'config, "": none',
    )
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, over the recipe's"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        task = prepare(args)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    default_setup(task.cfg, args)
    # Detectron2 sets up its own loggers only.
    setup_logger(task.cfg.OUTPUT_DIR, name="glipv2_d2")
    report = run(args, task)
    report.write(args.output)
    print(report.text())
    print(f"report.md, report.json and {DELTA_FILE} are in {args.output}")
    return 0


if __name__ == "__main__":
    if not torch.cuda.is_available():
        keep_freed_memory()
    sys.exit(main())
