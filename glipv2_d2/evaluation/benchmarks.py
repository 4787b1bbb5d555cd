"""Published benchmarks: their datasets, metrics and config settings.

:attr:`Benchmark.settings` holds only what is part of a benchmark's protocol.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog

from glipv2_d2.data import builtin  # noqa: F401 - registers the datasets
from glipv2_d2.data.readers.odinw import benchmark_names
from glipv2_d2.data.readers.refcoco import SPLITS
from glipv2_d2.data.registration import missing_paths

BOX_AND_MASK_AP = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: selects the benchmark.
        datasets: its datasets; each entry lists registered datasets with the same content, of
            which the first available one is evaluated.
        metrics: metrics to show, "task/metric"; those that a model or dataset lacks are left out.
        settings: config keys and values of its protocol.
        is_averaged: whether average and median of the first metric over the datasets are shown.
    """

    name: str
    datasets: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    is_averaged: bool = False


_project_benchmarks: list[Callable[[], Sequence[Benchmark]]] = []


def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    listed = (
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
    additional = (benchmark for make in _project_benchmarks for benchmark in make())
    return {benchmark.name: benchmark for benchmark in (*listed, *additional)}


def register_benchmarks(make: Callable[[], Sequence[Benchmark]]) -> None:
    """Append benchmarks of a project to the published ones.

    Args:
        make: returns the benchmarks; called by :func:`benchmarks`.
    """
    _project_benchmarks.append(make)


def _lvis(split: str) -> Benchmark:
    """Fixed AP with GLIP's 40 classes and 300 detections per prompt (glip_reference.md 18)."""
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
    """ODinW with class names, and with GLIP's prompts for the datasets that have one.

    GLIP's configs have prompts for 4 of the 35 datasets and for none of the 13 (glip_reference.md
    18); its paper reports the 13 with prompts as well.
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
    """From the original files, which have phrase types, or from MDETR's."""
    return Benchmark(
        f"flickr30k_{split}",
        ((f"flickr30k_entities_{split}", f"flickr30k_separate_{split}"),),
        ("grounding/R@1", "grounding/R@5", "grounding/R@10", "grounding_merged/R@1"),
    )


REFERRING_METRICS = ("referring_bbox/P@0.5", "referring_segm/mIoU", "referring_segm/oIoU")


def _refcoco(dataset: str, splits: Sequence[str]) -> Benchmark:
    # With masks, where the original files are there; the splits are those of MDETR's.
    author = "umd" if dataset == "refcocog" else "unc"
    names = tuple(
        (f"{dataset}_{author}_{split}", f"{dataset}_{split}")
        for split in splits
        if split != "train"
    )
    return Benchmark(dataset, names, REFERRING_METRICS)


ANSWER_METRICS = (
    "vqa/accuracy",
    *(f"vqa/accuracy-{kind}" for kind in ("yes/no", "number", "other")),
)
CAPTION_METRICS = ("captions/CIDEr", "captions/BLEU-4", "captions/ROUGE-L")


def _questions() -> list[Benchmark]:
    """VQA datasets with public answers."""
    sets = (("vqav2", "vqav2_val"), ("gqa", "gqa_balanced_testdev"))
    return [Benchmark(name, ((dataset,),), ANSWER_METRICS) for name, dataset in sets]


def select(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks with these names, in the order of :func:`benchmarks`; by default all.

    Raises:
        ValueError: unknown name.
    """
    known = benchmarks()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"unknown benchmark {name!r}{hint} Known are: {', '.join(known)}")
    return [benchmark for name, benchmark in known.items() if not names or name in names]


def first_available(alternatives: Sequence[str]) -> str | None:
    """The first dataset whose files all exist; None if there is none."""
    return next((name for name in alternatives if not missing_paths(name)), None)
