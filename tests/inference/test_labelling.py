"""A labelling run that is killed, or shared by processes, ends as one that is not."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.backward_actors import BackwardActors
from helpers.fixed_predictor import FixedPredictor, build_fixed_predictor
from PIL import Image

from glipv2_d2.batch_prediction import FilePrompts
from glipv2_d2.engine.shards import run_in_processes
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.inference.labelling import ImageLabelling, label_images

NUM_IMAGES = 60
FORMATS = ("coco", "yolo", "voc", "label-studio", "grounding", "csv")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of different sizes, of which one is damaged."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.png" for number in range(NUM_IMAGES)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number, 30)).save(path)
    paths[7].write_bytes(b"damaged")
    return [str(path) for path in paths]


def task(images: list[str], output: Path) -> ImageLabelling:
    return ImageLabelling(
        build_predictor=build_fixed_predictor,
        model="fixed",
        images=images,
        prompts=FilePrompts(["cat", "dog"]),
        thresholds=ScoreThresholds({"dog": 0.5}, 0.3),
        output=output,
        shard_size=8,
        batch_size=3,
    )


@pytest.fixture(scope="module")
def whole(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The output of a run of one process that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    report = label_images(task(images, folder), FORMATS)
    assert (report.num_images, len(report.left_out)) == (NUM_IMAGES - 1, 1)
    assert report.num_boxes == {"cat": NUM_IMAGES - 1, "dog": NUM_IMAGES - 1}
    return output_files(folder)


def output_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def label_and_be_killed(labelling: ImageLabelling) -> None:
    predict, calls = FixedPredictor.predict, []

    def counting(self: FixedPredictor, images: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return predict(self, images, **options)

    FixedPredictor.predict = counting  # type: ignore[method-assign]
    label_images(labelling, FORMATS)


def test_a_killed_run_ends_as_one_that_is_not(
    images: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    labelling = task(images, tmp_path)
    child = multiprocessing.get_context("fork").Process(
        target=label_and_be_killed, args=(labelling,)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    # The files of three shards, and the settings.
    assert len(output_files(tmp_path)) == 7
    label_images(labelling, FORMATS)
    assert output_files(tmp_path) == whole


def test_two_processes_write_what_one_writes(
    images: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    run = functools.partial(run_in_processes, num_processes=2)
    label_images(task(images, tmp_path), FORMATS, run=run)
    assert output_files(tmp_path) == whole


def test_actors_that_finish_in_another_order_write_the_same_files(
    images: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    label_images(task(images, tmp_path), FORMATS, run=BackwardActors().run_shards)
    assert output_files(tmp_path) == whole


def test_a_shard_of_a_batch_whose_actor_died_is_done_by_the_next_run(
    images: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    actors = BackwardActors(lost=frozenset({1}))
    with pytest.raises(ChildProcessError, match=r"died 3 times, .* each of 3 items, .*/3\.png"):
        label_images(task(images, tmp_path), FORMATS, run=actors.run_shards)
    # Of eight shards the first is missing.
    assert len(list((tmp_path / "shards").glob("*.jsonl"))) == 7
    assert not (tmp_path / "manifest.json").exists()
    label_images(task(images, tmp_path), FORMATS)
    assert output_files(tmp_path) == whole


def test_the_manifest_lists_the_shards(whole: dict[str, bytes]) -> None:
    first, *others = json.loads(whole["manifest.json"])["shards"]
    name = "shards/00000.jsonl"
    assert first == {"file": name, "num_items": 8, "num_bytes": len(whole[name])}
    assert sum(shard["num_items"] for shard in others) == NUM_IMAGES - 8


def test_formats_of_a_later_run_need_no_model(images: list[str], tmp_path: Path) -> None:
    labelling = task(images, tmp_path)
    label_images(labelling, ())
    unusable = dataclasses.replace(
        labelling, build_predictor=lambda _rank: pytest.fail("it loads a model")
    )
    (path, _left_out) = label_images(unusable, ("voc",)).files
    assert len(list(path.iterdir())) == NUM_IMAGES - 1
