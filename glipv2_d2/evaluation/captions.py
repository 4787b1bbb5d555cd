"""BLEU, ROUGE-L, CIDEr, METEOR and SPICE of captions, by the scorers of pycocoevalcap.

METEOR and SPICE are Java programs, SPICE with models that pycocoevalcap fetches from the network
when it is first used. What cannot be computed is named with its reason, and has no number.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from glipv2_d2.evaluation.caption_words import tokenize
from glipv2_d2.evaluation.texts import PERCENT, TextEvaluator
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

TASK = "captions"
SCORES_FILE = "caption_scores.json"
"""The metrics, what was not computed and why, and CIDEr of each image."""

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Captions = dict[int, list[str]]
"""Per image its tokenized captions, as pycocoevalcap takes them."""


class NotComputedError(Exception):
    """Why a metric has no number."""


@dataclass(frozen=True)
class CaptionScores:
    """What was measured of a set of captions.

    Attributes:
        metrics: of the whole set, times 100 (a CIDEr of 1.2 is 120).
        cider_per_image: times 100.
        tokenizer: what parted the words.
        not_computed: per metric without a number, the reason.
    """

    metrics: dict[str, float]
    cider_per_image: list[float]
    tokenizer: str
    not_computed: dict[str, str]


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """All metrics of one caption per image.

    Args:
        references: per image at least one caption of a person. CIDEr weighs words by how few
            images' references have them: its value depends on the whole set, and is 0 for one
            image.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    tokenized = tokenize([*references, *([caption] for caption in captions)])
    per_image = tokenized.captions_per_image
    truth = dict(enumerate(per_image[: len(references)]))
    said = dict(enumerate(per_image[len(references) :]))
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    rouge, _ = Rouge().compute_score(truth, said)
    cider, cider_per_image = Cider().compute_score(truth, said)
    metrics = dict(zip(BLEU_NAMES, bleu, strict=True)) | {"ROUGE-L": rouge, "CIDEr": cider}
    not_computed = {}
    for name, compute in JAVA_METRICS.items():
        try:
            metrics[name] = compute(truth, said)
        # A program that is missing, fails, or ends in the middle of its answer.
        except (NotComputedError, OSError, ValueError, subprocess.SubprocessError) as error:
            not_computed[name] = str(error) or type(error).__name__
    return CaptionScores(
        metrics={name: PERCENT * float(value) for name, value in metrics.items()},
        cider_per_image=[PERCENT * float(value) for value in cider_per_image],
        tokenizer=tokenized.tokenizer,
        not_computed=not_computed,
    )


def _meteor(truth: Captions, said: Captions) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    _need_java()
    scorer = Meteor()
    try:
        return scorer.compute_score(truth, said)[0]
    finally:
        # A failure leaves the lock taken, and the scorer's destructor would wait for it for ever.
        if scorer.lock.locked():
            scorer.lock.release()


def _spice(truth: Captions, said: Captions) -> float:
    from pycocoevalcap.spice import spice

    _need_java()
    library = Path(spice.__file__).with_name("lib")
    # Its constructor would fetch them from the network, in the middle of an evaluation.
    if not all((library / name).is_file() for name in SPICE_MODELS):
        raise NotComputedError(
            f"its models are not in '{library}': fetch them with "
            "python -m pycocoevalcap.spice.get_stanford_models"
        )
    return spice.Spice().compute_score(truth, said)[0]


def _need_java() -> None:
    if shutil.which("java") is None:
        raise NotComputedError("there is no Java")


JAVA_METRICS: dict[str, Callable[[Captions, Captions], float]] = {
    "METEOR": _meteor,
    "SPICE": _spice,
}


class CaptionEvaluator(TextEvaluator):
    """Task ``captions``: the metrics of :func:`score_captions`; those that have no number are told.

    A test set, whose captions nobody knows, has none; there is only the file for the server.
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
            logger.info("data set %r has no captions to compare with", self.dataset_name)
            return {}
        scores = score_captions(texts, [record[fields.TARGET_CAPTIONS] for record in records])
        self._write_scores(records, scores)
        table = tabulate(scores.metrics.items(), tablefmt="pipe", floatfmt=".2f")
        logger.info(
            "Captions of %r, %d images, words by %s:\n%s",
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
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
