"""The command trains, survives SIGKILL, evaluates, and says what is wrong with a config."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase, default_argument_parser
from helpers.stand_in import configure
from helpers.tiny_coco import write_coco

from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.trainer import Trainer


class KillBefore(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


class KillableTrainer(Trainer):
    def build_hooks(self) -> list[HookBase]:
        return [*super().build_hooks(), KillBefore(5)]


def in_child(function: Callable[..., object], *args: object) -> int:
    """The exit code of a process that calls ``function``: minus the signal that killed it."""
    child = multiprocessing.get_context("fork").Process(target=_call, args=(function, *args))
    child.start()
    child.join()
    return child.exitcode


def _call(function: Callable[..., object], *args: object) -> None:
    # OpenMP's threads do not live on in a fork.
    torch.set_num_threads(1)
    function(*args)


def run(*arguments: str) -> None:
    train_net.main(default_argument_parser().parse_args(list(arguments)))


def run_and_die(*arguments: str) -> None:
    train_net.Trainer = KillableTrainer
    run(*arguments)


@pytest.fixture
def config_file(tmp_path: Path) -> Iterator[str]:
    register_coco_instances("command_coco", {}, *map(str, write_coco(tmp_path / "tiny")))
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, "command_coco", str(tmp_path / "output"))
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    yield str(path)
    DatasetCatalog.remove("command_coco")
    MetadataCatalog.remove("command_coco")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_a_run_that_was_killed_and_resumed_ends_where_the_whole_one_does(
    config_file: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_child(run, "--config-file", config_file, "OUTPUT_DIR", str(whole)) == 0
    arguments = ("--config-file", config_file, "--resume", "OUTPUT_DIR", str(killed))
    assert in_child(run_and_die, *arguments) == -signal.SIGKILL
    assert (killed / "last_checkpoint").read_text() == "model_0000002.pth"
    assert in_child(run, *arguments) == 0
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(killed).items())


def test_evaluation_alone_writes_results(config_file: str, tmp_path: Path) -> None:
    assert in_child(run, "--config-file", config_file, "--eval-only") == 0
    results = tmp_path / "output/inference/command_coco/coco_instances_results.json"
    assert len(json.loads(results.read_text())) == 4


def test_a_mistyped_key_is_answered_before_anything_runs(config_file: str) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITERS.*SOLVER\.MAX_ITER"):
        run("--config-file", config_file, "SOLVER.MAX_ITERS", "3")
