"""Two processes train as one."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers.torchrun import torchrun
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from glipv2_d2.engine import processes
from glipv2_d2.engine.passes import MultiPassTrainer
from glipv2_d2.engine.processes import average_gradients, launch, torchrun_process_group

NAN = float("nan")
# Each process's inputs of the steps, one image each.
VALUES = ((0.5, 0.5, 0.25), (0.0, NAN, 0.75))


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss": self.weight * batch[0]["value"]}


def train(*, skip: bool) -> list[Any]:
    """The weight after each step, in one of the processes; at last an error's text."""
    with torchrun_process_group():
        model, rank = OneWeight(), comm.get_rank()
        trainer = MultiPassTrainer(
            model=average_gradients(model),
            data_loader=[
                [{"value": value, "file_name": f"{rank}{step}.png"}]
                for step, value in enumerate(VALUES[rank])
            ],
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            skips_non_finite=skip,
        )
        told: list[Any] = []
        with EventStorage():
            for _ in VALUES[rank]:
                try:
                    trainer.run_step()
                except FloatingPointError as error:
                    return [*told, str(error)]
                told.append(model.weight.item())
        return told


def train_and_skip() -> list[Any]:
    return train(skip=True)


def train_and_stop() -> list[Any]:
    return train(skip=False)


def test_all_processes_step_by_the_mean_gradient_and_skip_what_one_of_them_cannot_do() -> None:
    assert torchrun(train_and_skip) == [[0.75, 0.75, 0.25]] * 2


def test_all_processes_stop_and_name_the_images_of_the_one_that_cannot_go_on() -> None:
    first, second = torchrun(train_and_stop)
    assert first == second
    assert first[0] == 0.75
    assert first[1] == "loss is nan for 11.png"


def train_two_passes() -> tuple[float, int]:
    """The weight after a step, and how often the processes exchanged gradients for it."""
    with torchrun_process_group():
        model, exchanges = OneWeight(), []
        shared = average_gradients(model)
        shared.register_comm_hook(exchanges, count_exchange)
        trainer = MultiPassTrainer(
            model=shared,
            data_loader=[[{"value": value}] for value in ((0.0, 1.0), (1.0, 0.0))[comm.get_rank()]],
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            num_passes=2,
        )
        with EventStorage():
            trainer.run_step()
        return model.weight.item(), len(exchanges)


# DDP reads annotations, and does not understand those that are texts.
def count_exchange(exchanges, bucket):
    exchanges.append(bucket.index())
    return allreduce_hook(None, bucket)


def test_processes_exchange_the_gradient_of_several_passes_once() -> None:
    assert torchrun(train_two_passes) == [(0.5, 1)] * 2


@pytest.fixture
def arguments() -> argparse.Namespace:
    return default_argument_parser().parse_args(["--num-gpus", "2"])


def test_more_gpus_than_there_are_are_refused(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus is 2, this machine has 1"):
        launch(print, arguments)


def test_processes_are_not_asked_for_twice(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="torchrun has started .* leave out --num-gpus"):
        launch(print, arguments)


def test_without_torchrun_detectron2_starts_the_processes(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        processes, "detectron2_launch", lambda *args, **kwargs: started.append((args, kwargs))
    )
    launch(print, arguments)
    ((main, num_gpus), options) = started[0]
    assert (main, num_gpus, options["num_machines"]) == (print, 2, 1)
