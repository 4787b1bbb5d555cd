"""The published benchmarks: their data sets, the numbers that count, and what they ask of a config.

Which boxes are found is the model's matter. What stands in :attr:`Benchmark.settings` is part of a
benchmark's protocol.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog

# Registers the data sets.
from glipv2_d2.data import builtin
from glipv2_d2.data.readers.odinw import benchmark_names
from glipv2_d2.data.readers.refcoco import SPLITS
from glipv2_d2.data.registration import missing_paths

BOX_AND_MASK_AP = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: by which it is chosen.
        datasets: what it is made of; each entry lists registered data sets of the same content, of
            which the first that is here is taken.
        metrics: that are shown, "task/metric"; those that a model or data set does not give are
            left out.
        settings: keys and values of the config that its protocol asks for.
        is_averaged: the average and the median of the first metric over the data sets count.
    """

    name: str
    datasets: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    is_averaged: bool = False


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by its name."""
    listed = (
        *_mini(),
        Benchmark("coco", (("coco_2017_val",),), (*BOX_AND_MASK_AP, "bbox/APs", "bbox/APl")),
        _lvis("minival"),
        _lvis("val"),
        *_odinw(),
        *(_flickr30k(split) for split in ("val", "test")),
        *(_refcoco(dataset, splits) for dataset, splits in SPLITS.items()),
        Benchmark(
            "phrasecut",
            (("phrasecut_test", "phrasecut_mdetr_test"),),
            tuple(
                f"phrasecut_{kind}/{iou}" for kind in ("segm", "bbox") for iou in ("mIoU", "cIoU")
            ),
        ),
        *_questions(),
        Benchmark("coco_captions", (("coco_captions_karpathy_test",),), CAPTION_METRICS),
    )
    return {benchmark.name: benchmark for benchmark in listed}


def _mini() -> list[Benchmark]:
    """Composed scenes, for every task."""

    def datasets(suffix: str) -> tuple[tuple[str, ...], ...]:
        return tuple((f"mini_stamps_{split}{suffix}",) for split in builtin.STAMPS_TEST_SPLITS)

    return [
        Benchmark("mini", datasets(""), BOX_AND_MASK_AP),
        Benchmark("mini_captions", datasets("_captions"), ("grounding/R@1", "grounding/R@5")),
        Benchmark("mini_referring", datasets("_referring"), REFERRING_METRICS),
        Benchmark("mini_vqa", datasets("_vqa"), ANSWER_METRICS),
        Benchmark("mini_captioning", datasets("_captioning"), CAPTION_METRICS),
    ]


def _lvis(split: str) -> Benchmark:
    """The "fixed AP" with GLIP's prompts of 40 names and 300 detections of each (GLIP spec 18)."""
    rare_to_frequent = ("AP", "APr", "APc", "APf")
    return Benchmark(
        f"lvis_{split}",
        ((f"lvis_v1_{split}",),),
        tuple(f"{task}/{metric}" for task in ("bbox", "segm") for metric in rare_to_frequent),
        settings=(
            ("MODEL.PROMPT.MAX_CLASSES", 40),
            ("MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 300),
            ("TEST.DETECTIONS_PER_IMAGE", -1),
        ),
    )


def _odinw() -> list[Benchmark]:
    """ODinW by class names, and with GLIP's prompts for the sets that have one.

    GLIP's configs of the 35 have the prompts and those of the 13 have none (GLIP spec 18); its
    paper shows the 13 with prompts as well.
    """

    def datasets(benchmark: str, *, prompted: bool) -> tuple[tuple[str, ...], ...]:
        names = benchmark_names(benchmark)
        with_prompts = [f"{name}_prompted" for name in names]
        known = set(DatasetCatalog.list()) if prompted else set()
        return tuple(
            (own if own in known else name,) for name, own in zip(names, with_prompts, strict=True)
        )

    return [
        Benchmark(name, datasets(source, prompted=prompted), ("bbox/AP",), is_averaged=True)
        for name, source, prompted in (
            ("odinw_13", "odinw_13", False),
            ("odinw_13_prompted", "odinw_13", True),
            ("odinw_35", "odinw_35", True),
        )
    ]


def _flickr30k(split: str) -> Benchmark:
    """From its own files, which tell the kinds of phrase, or from MDETR's."""
    return Benchmark(
        f"flickr30k_{split}",
        ((f"flickr30k_entities_{split}", f"flickr30k_separate_{split}"),),
        ("grounding/R@1", "grounding/R@5", "grounding/R@10", "grounding_merged/R@1"),
    )


REFERRING_METRICS = ("referring_bbox/P@0.5", "referring_segm/mIoU", "referring_segm/oIoU")


def _refcoco(dataset: str, splits: Sequence[str]) -> Benchmark:
    names = [f"{dataset}_{split}" for split in splits if split != "train"]
    return Benchmark(dataset, tuple((name,) for name in names), REFERRING_METRICS)


ANSWER_METRICS = (
    "vqa/accuracy",
    *(f"vqa/accuracy-{kind}" for kind in ("yes/no", "number", "other")),
)
CAPTION_METRICS = ("captions/CIDEr", "captions/BLEU-4", "captions/ROUGE-L")


def _questions() -> list[Benchmark]:
    """Those whose answers are public."""
    sets = (("vqav2", "vqav2_val"), ("gqa", "gqa_balanced_testdev"), ("easy_vqa", "easy_vqa_test"))
    return [Benchmark(name, ((dataset,),), ANSWER_METRICS) for name, dataset in sets]


def select(names: Sequence[str]) -> list[Benchmark]:
    """The named benchmarks in the order of the table; all of them where none is named.

    Raises:
        ValueError: one is not known.
    """
    known = benchmarks()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"there is no benchmark {name!r}{hint} Known are: {', '.join(known)}")
    return [benchmark for name, benchmark in known.items() if not names or name in names]


def dataset_here(alternatives: Sequence[str]) -> str | None:
    """The first of the data sets whose files are all here."""
    return next((name for name in alternatives if not missing_paths(name)), None)
