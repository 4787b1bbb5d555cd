"""ODinW, "object detection in the wild": GLIP's benchmarks of 13 and 35 small datasets.

Folders, files, class names and prompts are in ``assets/odinw.json``, taken from the configs of
microsoft/GLIP. These class names replace those of the annotation files, as GLIP's
OVERRIDE_CATEGORY does (glip_reference.md 18); an entry without a name ("ChessPieces") gets the
name of its supercategory (our choice). Of the two sizes of plantdoc, the benchmark of 35 has
416x416. GLIP's configs of the benchmark of 13 name the classes of two datasets differently.
"""

from __future__ import annotations

import functools
import json
import os
from importlib import resources
from typing import Any

from glipv2_d2.data.readers.coco import read_coco
from glipv2_d2.data.registration import register
from glipv2_d2.text.prompts import Decoration

# configs/odinw_13/*.yaml of microsoft/GLIP, where they differ from configs/odinw_35.
CLASSES_OF_13 = {
    "CottontailRabbits": ["Cottontail-Rabbit"],
    "NorthAmericaMushrooms_North_American_Mushrooms.v1-416x416.coco": ["CoW", "chanterelle"],
}

FEW_SHOTS = (1, 3, 5, 10)
FEW_SHOT_SEEDS = (3, 30, 300)
"""The shots and seeds of the published splits."""

FEW_SHOT_SPLITS = ("train", "val", "minival")

PROMPTED_BENCHMARK = "odinw_35"
"""The one whose configs have prompts."""


@functools.cache
def odinw_datasets() -> dict[str, dict[str, Any]]:
    """Per dataset: ``benchmarks``, ``evaluated_on``, ``classes``, ``splits``, ``prompt`` if any."""
    text = resources.files("glipv2_d2.data").joinpath("assets/odinw.json").read_text("utf-8")
    return json.loads(text)


def benchmark_names(benchmark: str) -> list[str]:
    """The registered names of a benchmark's evaluation datasets, with its own class names.

    >>> len(benchmark_names("odinw_13")), len(benchmark_names("odinw_35"))
    (13, 35)

    Raises:
        ValueError: the benchmark is unknown.
    """
    names = [
        f"{_prefix(key, benchmark)}_{key}_{entry['evaluated_on']}"
        for key, entry in odinw_datasets().items()
        if benchmark in entry["benchmarks"]
    ]
    if not names:
        raise ValueError(f"unknown benchmark {benchmark!r}; use 'odinw_13' or 'odinw_35'")
    return names


def split_name(key: str, split: str, benchmark: str) -> str:
    """The registered name of a split with the class names and the prompt of a benchmark's config.

    >>> split_name("CottontailRabbits", "test", "odinw_13")
    'odinw_13_CottontailRabbits_test'
    >>> split_name("pothole", "train_3_30", "odinw_35")
    'odinw_pothole_train_3_30_prompted'
    """
    is_prompted = benchmark == PROMPTED_BENCHMARK and "prompt" in odinw_datasets()[key]
    suffix = "_prompted" if is_prompted else ""
    return f"{_prefix(key, benchmark)}_{key}_{split}{suffix}"


def few_shot_file(split: str, shots: int, seed: int) -> str:
    """The published annotation file of a few-shot split, in the folder of the split's own."""
    return f"fewshot_{split}_shot{shots}_seed{seed}.json"


def _prefix(key: str, benchmark: str) -> str:
    return "odinw_13" if benchmark == "odinw_13" and key in CLASSES_OF_13 else "odinw"


def register_odinw(root: str) -> None:
    """Register every dataset below ``root``/odinw.

    Names are ``odinw_<set>_<split>`` with the splits ``train``, ``val``, ``test``, for some
    ``minival``, and of each but ``test`` the few-shot splits, such as ``train_<shots>_<seed>``. If
    GLIP has a prompt for the dataset, ``<split>_prompted`` uses it. ``odinw_13_<set>_<split>`` are
    the two datasets whose classes have other names in the benchmark of 13.
    """
    directory = os.path.join(root, "odinw")
    for key, entry in odinw_datasets().items():
        for split, json_file in _annotation_files(entry["splits"]).items():
            path = os.path.join(directory, json_file)
            register_split(f"odinw_{key}_{split}", path, entry["classes"])
            if key in CLASSES_OF_13:
                register_split(f"odinw_13_{key}_{split}", path, CLASSES_OF_13[key])
            if "prompt" in entry:
                decorations = [Decoration(*parts) for parts in entry["prompt"]]
                register_split(
                    f"odinw_{key}_{split}_prompted",
                    path,
                    entry["classes"],
                    decorations=decorations,
                )


def _annotation_files(splits: dict[str, str]) -> dict[str, str]:
    """The annotation file of every split; a few-shot split is in the folder of its split."""
    few = {
        f"{split}_{shots}_{seed}": os.path.join(
            os.path.dirname(splits[split]), few_shot_file(split, shots, seed)
        )
        for split in FEW_SHOT_SPLITS
        if split in splits
        for shots in FEW_SHOTS
        for seed in FEW_SHOT_SEEDS
    }
    return {**splits, **few}


def register_split(name: str, json_file: str, classes: list[str], **metadata: Any) -> None:
    """Register an annotation file in the folder of its images, with other class names."""
    image_root = os.path.dirname(json_file)
    # No json_file in the metadata: its categories may differ from these class names, so the
    # evaluator takes the ground truth from the records.
    register(
        name,
        functools.partial(read_coco, json_file, image_root, name, class_names=classes),
        source_files=(json_file,),
        evaluator_type="coco",
        **metadata,
    )
