"""The jobs of few-shot ODinW: sets, shots, seeds and policies, as one list."""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glipv2_d2.data.readers.odinw import (
    FEW_SHOT_SEEDS,
    FEW_SHOTS,
    odinw_datasets,
    split_name,
)
from glipv2_d2.engine.finetune.policies import policy_names
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.messages import quote

JOBS_FILE = "jobs.jsonl"
ALL_IMAGES = 0
"""The number of shots that stands for all images."""

BENCHMARKS = {"13": "odinw_13", "35": "odinw_35"}
VALIDATION_SETS = ("full", "few_shot")

# Boxes alone do not train them.
_POLICIES_WITHOUT_BOXES = ("mask_heads", "text_heads")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        benchmark: odinw_13 or odinw_35, whose class names and prompts are used.
        dataset: the set, a key of ``odinw_datasets()``.
        policy: which parameters are trained.
        shots: images per class; 0: all.
        seed: of the published split, and of the training.
        validation: the set that selects the weights: "full", or "few_shot", the published one.
    """

    benchmark: str
    dataset: str
    policy: str
    shots: int
    seed: int
    validation: str

    @property
    def name(self) -> str:
        """Also the job's folder, below that of all jobs."""
        validation = "" if self.validation == "full" else f".{self.validation}_validation"
        return (
            f"{self.policy}/{self.shots or 'all'}_shots/seed_{self.seed}/"
            f"{self.benchmark}.{self.dataset}{validation}"
        )

    @property
    def train_set(self) -> str:
        """The registered name of the training set; of the others likewise."""
        return self._split(f"train_{self.shots}_{self.seed}" if self.shots else "train")

    @property
    def validation_set(self) -> str:
        split = odinw_datasets()[self.dataset]["evaluated_on"]
        if self.shots and self.validation == "few_shot":
            split = f"{split}_{self.shots}_{self.seed}"
        return self._split(split)

    @property
    def test_set(self) -> str:
        return self._split("test")

    def _split(self, split: str) -> str:
        return split_name(self.dataset, split, self.benchmark)


def job_list(
    sets: Sequence[str],
    *,
    shots: Sequence[int],
    seeds: Sequence[int],
    policies: Sequence[str],
    validation: str = "full",
) -> list[Job]:
    """Every combination, once; the jobs of a policy with the same shots are consecutive.

    All images are no sample, so that they are trained on with the first seed only.

    Args:
        sets: "13", "35", or names. A set of both benchmarks that is selected by name is as in the
            13, for which the papers have results.

    Raises:
        ValueError: a value is unknown or missing; the message has the nearest ones.
    """
    _check("set", sets, {*BENCHMARKS, *_known_sets()})
    _check("policy", policies, set(policy_names()) - set(_POLICIES_WITHOUT_BOXES))
    _check("number of shots", shots, (*FEW_SHOTS, ALL_IMAGES))
    _check("seed", seeds, FEW_SHOT_SEEDS)
    _check("validation set", [validation], VALIDATION_SETS)
    chosen = list(dict.fromkeys(itertools.chain.from_iterable(map(_sets_of, sets))))
    combinations = itertools.product(
        dict.fromkeys(policies), dict.fromkeys(shots), dict.fromkeys(seeds), chosen
    )
    return [
        Job(benchmark, dataset, policy, number, seed, validation if number else "full")
        for policy, number, seed, (benchmark, dataset) in combinations
        if number != ALL_IMAGES or seed == seeds[0]
    ]


def _known_sets() -> dict[str, str]:
    """Set -> the first benchmark that has it."""
    return {
        key: entry["benchmarks"][0]
        for key, entry in odinw_datasets().items()
        if entry["benchmarks"]
    }


def _sets_of(name: str) -> Iterable[tuple[str, str]]:
    """The benchmarks and sets that one argument selects."""
    if name not in BENCHMARKS:
        return [(_known_sets()[name], name)]
    benchmark = BENCHMARKS[name]
    sets = [key for key, x in odinw_datasets().items() if benchmark in x["benchmarks"]]
    return [(benchmark, key) for key in sets]


def _check(kind: str, values: Sequence[Any], known: Collection[Any]) -> None:
    texts = sorted(map(str, known), key=lambda text: (not text.isdigit(), len(text), text))
    if not values:
        raise ValueError(f"no {kind} is selected; choose from {', '.join(texts)}")
    for value in values:
        if value in known:
            continue
        text = str(value)
        begin_alike = [other for other in texts if text and other.startswith(text)]
        close = begin_alike or difflib.get_close_matches(text, texts, n=3)
        hint = f"; did you mean {' or '.join(close[:3])}?" if close else "."
        raise ValueError(f"unknown {kind} {quote(value)}{hint} Known are: {', '.join(texts)}")


def write_jobs(jobs: Sequence[Job], output: Path) -> None:
    """Write ``jobs.jsonl``, one job a line; several processes may do so at once."""
    write_shared(output / JOBS_FILE, "".join(f"{dump_json(asdict(job))}\n" for job in jobs))


def read_jobs(output: Path) -> list[Job]:
    """The jobs that the last command listed.

    Raises:
        FileNotFoundError: there is no list.
        ValueError: a line is not a job, or there is none.
    """
    path = output / JOBS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: run the jobs first, or set --output")
    jobs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            jobs.append(job_from(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{path}', line {number}: {error}") from error
    if not jobs:
        raise ValueError(f"'{path}' lists no job")
    return list(dict.fromkeys(jobs))


def job_from(values: Any) -> Job:
    """The job of values that were read from a file.

    Raises:
        ValueError: they are not those of a job.
    """
    names = [field.name for field in fields(Job)]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise ValueError(f"{quote(values)} is not a job with the keys {', '.join(names)}")
    for key, value in values.items():
        kind = int if key in ("shots", "seed") else str
        if type(value) is not kind:
            raise ValueError(f"{key} is {quote(value)}; it must be of the type {kind.__name__}")
    job = Job(**values)
    _check("set", [job.dataset], _known_sets())
    _check("benchmark", [job.benchmark], odinw_datasets()[job.dataset]["benchmarks"])
    # Checks the others.
    job_list(
        [job.dataset],
        shots=[job.shots],
        seeds=[job.seed],
        policies=[job.policy],
        validation=job.validation,
    )
    return job


def write_shared(path: Path, text: str) -> None:
    """Atomically write a file that other processes and machines may write at the same moment."""
    partial = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
    atomic_write(partial, text)
    os.replace(partial, path)
