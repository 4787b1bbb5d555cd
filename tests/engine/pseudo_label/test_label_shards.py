"""Labelling resumes after an interruption, and every pair is labelled once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backward_actors import BackwardActors
from helpers.caption_data import use_plain_tagger, write_images, write_lines, write_tar
from helpers.stand_in import MeanColour

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.data.readers.captions import read_shards
from glipv2_d2.engine.pseudo_label.label_shards import (
    LabellingReport,
    LabellingTask,
    label_captions,
)
from glipv2_d2.engine.pseudo_label.pseudo_labeler import BAD_IMAGE, NO_PHRASE
from glipv2_d2.engine.setup import load_config
from glipv2_d2.images import read_image

# One image is missing, and one caption has no noun phrase.
PAIRS = [
    ("0.png", "a cat"),
    ("1.png", "a dog on a mat"),
    ("none.png", "a cat"),
    ("2.png", "a mat"),
    ("0.png", "runs"),
    ("1.png", "a hat"),
    ("2.png", "a dog"),
]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabellingTask:
    """Seven pairs in three shards."""
    use_plain_tagger(monkeypatch)
    opts = ["MODEL.META_ARCHITECTURE", "MeanColour", "INPUT.MIN_SIZE_TEST", 32]
    cfg = load_config(opts=[*opts, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0])
    save_weights(MeanColour(cfg), tmp_path / "weights.pth")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    return LabellingTask(
        cfg,
        captions=write_lines(tmp_path / "captions.jsonl", PAIRS),
        image_root=str(write_images(tmp_path / "set", 3)),
        output=tmp_path / "output",
        shard_size=3,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def output_files(task: LabellingTask) -> dict[str, bytes]:
    """Path -> contents of every output file."""
    return {
        str(path.relative_to(task.output)): path.read_bytes()
        for path in task.output.rglob("*")
        if path.is_file()
    }


class ForwardCounter:
    """Counts the images of forward passes, and optionally kills the process at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> None:
        self.num_images = 0
        forward = MeanColour.forward

        def counting(model: MeanColour, inputs: list[dict]) -> Any:
            self.num_images += len(inputs)
            if self.num_images == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(model, inputs)

        monkeypatch.setattr(MeanColour, "forward", counting)


def label_and_be_killed(task: LabellingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    # The fourth image belongs to the second shard.
    ForwardCounter(monkeypatch, kill_at=4)
    label_captions(task)


def test_every_pair_is_labelled_or_left_out_once_in_order(task: LabellingTask) -> None:
    report = label_captions(task)
    labelled = lines(task.output / "labels.jsonl")
    left_out = lines(task.output / "left_out.jsonl")
    expected = [pair for pair in PAIRS if pair not in (PAIRS[2], PAIRS[4])]
    assert [(x["image"], x["caption"]) for x in labelled] == expected
    assert [(x["image"], x["reason"]) for x in left_out] == [
        ("none.png", BAD_IMAGE),
        ("0.png", NO_PHRASE),
    ]
    assert (report.num_pairs, report.num_records, report.num_boxes) == (7, 5, 5)


def test_bad_images_are_counted_with_examples(task: LabellingTask) -> None:
    report = label_captions(task)
    assert report.left_out.counts[BAD_IMAGE] == 1
    assert report.left_out.examples[BAD_IMAGE] == ["none.png"]


def test_a_resumed_run_gives_the_output_of_an_uninterrupted_one(
    task: LabellingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dataclasses.replace(task, output=tmp_path / "whole")
    whole_report = label_captions(whole)

    child = multiprocessing.get_context("fork").Process(
        target=label_and_be_killed, args=(task, monkeypatch)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [name for name in output_files(task) if name.endswith(".jsonl")] == [
        "shards/00000.jsonl"
    ]

    counter = ForwardCounter(monkeypatch)
    report = label_captions(task)
    # The second shard is repeated, then the third; one of their captions has no noun phrase.
    assert counter.num_images == 3
    assert output_files(task) == output_files(whole)
    assert report.left_out == whole_report.left_out


def test_actors_that_finish_in_another_order_give_the_same_output(
    task: LabellingTask, tmp_path: Path
) -> None:
    whole = dataclasses.replace(task, output=tmp_path / "whole")
    label_captions(whole)
    label_captions(task, run=BackwardActors().run_shards)
    assert output_files(task) == output_files(whole)


def test_partial_files_of_a_killed_run_are_overwritten(task: LabellingTask) -> None:
    task.shard_folder.mkdir(parents=True)
    for name in ("00000.jsonl.partial", "00001.account.json.partial"):
        (task.shard_folder / name).write_text('{"image": "0.p')
    assert label_captions(task).num_records == 5
    assert not [name for name in output_files(task) if name.endswith(".partial")]


def test_a_complete_folder_is_not_labelled_again(
    task: LabellingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: LabellingReport = label_captions(task)
    counter = ForwardCounter(monkeypatch)
    assert label_captions(task) == first
    assert counter.num_images == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.6}, r"threshold was 0\.5 and is 0\.6"),
        ({"shard_size": 2}, "shard_size was 3 and is 2"),
        ({"captions": PAIRS[:5]}, "captions was"),
        ({"cfg": ["INPUT.MIN_SIZE_TEST", 40]}, "model was"),
    ],
)
def test_a_run_with_other_settings_is_an_error(
    change: dict[str, Any], message: str, task: LabellingTask, tmp_path: Path
) -> None:
    label_captions(task)
    if "captions" in change:
        change = {"captions": write_lines(tmp_path / "other.jsonl", change["captions"])}
    if "cfg" in change:
        cfg = task.cfg.clone()
        cfg.merge_from_list(change["cfg"])
        change = {"cfg": cfg}
    with pytest.raises(ValueError, match=message):
        label_captions(dataclasses.replace(task, **change))


def test_another_number_of_loader_processes_is_accepted(task: LabellingTask) -> None:
    label_captions(task)
    cfg = task.cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 7
    assert label_captions(dataclasses.replace(task, cfg=cfg)).num_records == 5


def test_tar_shards_give_tar_shards_with_the_images(task: LabellingTask, tmp_path: Path) -> None:
    images = Path(task.image_root)
    members = {}
    for number, (image, caption) in enumerate(PAIRS[:2] + PAIRS[4:]):
        members[f"{number}.png"] = (images / image).read_bytes()
        members[f"{number}.txt"] = caption.encode()
    source = write_tar(tmp_path / "in.tar", members)
    report = label_captions(dataclasses.replace(task, captions=source, image_root=""))
    records = read_shards(report.dataset["shards"], "labelled")
    captions = ["a cat", "a dog on a mat", "a hat", "a dog"]
    assert [record["caption"] for record in records] == captions
    assert [record["annotations"][0]["tokens_positive"] for record in records] == [[[0, 5]]] * 4
    for record, name in zip(records, ("0.png", "1.png", "1.png", "2.png"), strict=True):
        expected = read_image(images / name)
        assert (read_image(record["file_name"]) == expected).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threshold": 50}, ValueError, "threshold is 50"),
        ({"shard_size": 0}, ValueError, "shard size is 0"),
        ({"batch_size": 0}, ValueError, "batch size 0"),
        ({"image_root": ""}, ValueError, "pass the folder of the images"),
        ({"captions": "cc3m.tar"}, ValueError, "no folder for tar shards"),
        ({"image_root": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
    ],
)
def test_an_invalid_task_is_an_error(
    change: dict[str, Any], error: type[Exception], message: str, task: LabellingTask
) -> None:
    with pytest.raises(error, match=message):
        dataclasses.replace(task, **change)


def test_a_task_without_weights_is_an_error(task: LabellingTask) -> None:
    cfg = task.cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="set the weights of the model"):
        dataclasses.replace(task, cfg=cfg)
