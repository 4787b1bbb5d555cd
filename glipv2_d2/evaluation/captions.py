"""Captioning metrics of pycocoevalcap: BLEU, ROUGE-L, CIDEr, METEOR and SPICE.

METEOR and SPICE are Java programs; pycocoevalcap downloads models for SPICE on first use. A metric
that cannot be computed is left out of the results, and the reason is logged.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from glipv2_d2.evaluation.caption_tokenizer import tokenize
from glipv2_d2.evaluation.text_evaluator import PERCENT, TextEvaluator
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

TASK = "captions"
SCORES_FILE = "caption_scores.json"
"""The metrics, the reasons for metrics that were not computed, and CIDEr per image."""

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Captions = dict[int, list[str]]
"""Image index -> tokenised captions, the input format of pycocoevalcap."""


class NotComputedError(Exception):
    """A metric cannot be computed in this environment; the message is the reason."""


@dataclass(frozen=True)
class CaptionScores:
    """Metrics of a set of captions.

    Attributes:
        metrics: of the whole set, times 100 (a CIDEr of 1.2 is 120).
        cider_per_image: times 100.
        tokenizer: name of the tokenizer.
        not_computed: metric -> the reason why it was not computed.
    """

    metrics: dict[str, float]
    cider_per_image: list[float]
    tokenizer: str
    not_computed: dict[str, str]


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Compute all metrics of one generated caption per image.

    Args:
        references: at least one human caption per image. CIDEr weights n-grams by their inverse
            document frequency over the references: it depends on the whole set, and is 0 for a
            single image.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    tokenized = tokenize([*references, *([caption] for caption in captions)])
    per_image = tokenized.captions_per_image
    truth = dict(enumerate(per_image[: len(references)]))
    candidates = dict(enumerate(per_image[len(references) :]))
    bleu, _ = Bleu(4).compute_score(truth, candidates, verbose=0)
    rouge, _ = Rouge().compute_score(truth, candidates)
    cider, cider_per_image = Cider().compute_score(truth, candidates)
    metrics = dict(zip(BLEU_NAMES, bleu, strict=True)) | {"ROUGE-L": rouge, "CIDEr": cider}
    not_computed = {}
    for name, compute in JAVA_METRICS.items():
        try:
            metrics[name] = compute(truth, candidates)
        # The program is missing, fails, or exits before its output is complete.
        except (NotComputedError, OSError, ValueError, subprocess.SubprocessError) as error:
            not_computed[name] = str(error) or type(error).__name__
    return CaptionScores(
        metrics={name: PERCENT * float(value) for name, value in metrics.items()},
        cider_per_image=[PERCENT * float(value) for value in cider_per_image],
        tokenizer=tokenized.tokenizer,
        not_computed=not_computed,
    )


def _meteor(truth: Captions, candidates: Captions) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    _require_java()
    scorer = Meteor()
    try:
        return scorer.compute_score(truth, candidates)[0]
    finally:
        # After a failure the lock is still held, and the destructor of the scorer would deadlock.
        if scorer.lock.locked():
            scorer.lock.release()


def _spice(truth: Captions, candidates: Captions) -> float:
    from pycocoevalcap.spice import spice

    _require_java()
    library = Path(spice.__file__).with_name("lib")
    # Its constructor would download them in the middle of an evaluation.
    if not all((library / name).is_file() for name in SPICE_MODELS):
        raise NotComputedError(
            f"its models are not in '{library}': download them with "
            "python -m pycocoevalcap.spice.get_stanford_models"
        )
    return spice.Spice().compute_score(truth, candidates)[0]


def _require_java() -> None:
    if shutil.which("java") is None:
        raise NotComputedError("Java is not installed")


JAVA_METRICS: dict[str, Callable[[Captions, Captions], float]] = {
    "METEOR": _meteor,
    "SPICE": _spice,
}


class CaptionEvaluator(TextEvaluator):
    """Task ``captions``: the metrics of :func:`score_captions`.

    A test set without public captions has no metrics, only the file for the evaluation server.
    """

    id_key = fields.IMAGE_ID
    text_key = fields.CAPTION
    results_file = "captions_results.json"

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        """
        Raises:
            ValueError: the package pycocoevalcap is not installed.
        """
        if importlib.util.find_spec("pycocoevalcap") is None:
            raise ValueError(
                f"evaluating {dataset_name!r} needs the package pycocoevalcap: "
                "pip install pycocoevalcap"
            )
        super().__init__(dataset_name, output_folder)

    def measure(
        self, records: Sequence[dict[str, Any]], texts: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        if not records or not all(record[fields.TARGET_CAPTIONS] for record in records):
            logger.info("dataset %r has no reference captions", self.dataset_name)
            return {}
        scores = score_captions(texts, [record[fields.TARGET_CAPTIONS] for record in records])
        self._write_scores(records, scores)
        table = tabulate(scores.metrics.items(), tablefmt="pipe", floatfmt=".2f")
        logger.info(
            "Captions of %r, %d images, tokenizer %s:\n%s",
            self.dataset_name,
            len(records),
            scores.tokenizer,
            table,
        )
        for name, reason in scores.not_computed.items():
            logger.warning("%s was not computed: %s", name, reason)
        return {TASK: scores.metrics}

    def _write_scores(self, records: Sequence[dict[str, Any]], scores: CaptionScores) -> None:
        ids = [record[self.id_key] for record in records]
        content = {
            "metrics": scores.metrics,
            "tokenizer": scores.tokenizer,
            "not_computed": scores.not_computed,
            "cider_per_image": [
                {self.id_key: key, "CIDEr": cider}
                for key, cider in zip(ids, scores.cider_per_image, strict=True)
            ],
        }
        path = self.output_folder / SCORES_FILE
        atomic_write(path, dump_json(content, indent=1))
