"""The benchmarks of the small model: composed scenes for every task, and easy-VQA."""

from __future__ import annotations

from glipv2_d2.evaluation.benchmarks import (
    ANSWER_METRICS,
    BOX_AND_MASK_AP,
    CAPTION_METRICS,
    REFERRING_METRICS,
    Benchmark,
)
from glipv2_mini.data.builtin import STAMPS_TEST_SPLITS


def mini_benchmarks() -> list[Benchmark]:
    """The benchmarks in the order of the table."""

    def datasets(suffix: str) -> tuple[tuple[str, ...], ...]:
        return tuple((f"mini_stamps_{split}{suffix}",) for split in STAMPS_TEST_SPLITS)

    return [
        Benchmark("mini", datasets(""), BOX_AND_MASK_AP),
        Benchmark("mini_captions", datasets("_captions"), ("grounding/R@1", "grounding/R@5")),
        Benchmark("mini_referring", datasets("_referring"), REFERRING_METRICS),
        Benchmark("mini_vqa", datasets("_vqa"), ANSWER_METRICS),
        Benchmark("mini_captioning", datasets("_captioning"), CAPTION_METRICS),
        Benchmark("easy_vqa", (("easy_vqa_test",),), ANSWER_METRICS),
    ]
