"""Training in two processes."""

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

from glipv2_d2.engine.train import distributed
from glipv2_d2.engine.train.distributed import average_gradients, launch, torchrun_process_group
from glipv2_d2.engine.train.train_step import AccumulatingTrainer

NAN = float("nan")
# Per process: the input of each step, one image.
VALUES = ((0.5, 0.5, 0.25), (0.0, NAN, 0.75))


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss": self.weight * batch[0]["value"]}


def train(*, skip: bool) -> list[Any]:
    """The weight after each step in this process, then the message of an error."""
    with torchrun_process_group():
        model, rank = OneWeight(), comm.get_rank()
        trainer = AccumulatingTrainer(
            model=average_gradients(model),
            data_loader=[
                [{"value": value, "file_name": f"{rank}{step}.png"}]
                for step, value in enumerate(VALUES[rank])
            ],
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            skip_non_finite=skip,
        )
        results: list[Any] = []
        with EventStorage():
            for _ in VALUES[rank]:
                try:
                    trainer.run_step()
                except FloatingPointError as error:
                    return [*results, str(error)]
                results.append(model.weight.item())
        return results


def train_and_skip() -> list[Any]:
    return train(skip=True)


def train_and_stop() -> list[Any]:
    return train(skip=False)


def test_all_processes_apply_the_mean_gradient_and_skip_the_same_steps() -> None:
    assert torchrun(train_and_skip) == [[0.75, 0.75, 0.25]] * 2


def test_a_non_finite_loss_of_one_process_is_an_error_in_all() -> None:
    first, second = torchrun(train_and_stop)
    assert first == second
    assert first[0] == 0.75
    assert first[1] == "loss is nan for 11.png"


def train_two_micro_batches() -> tuple[float, int]:
    """The weight after a step, and the number of gradient exchanges."""
    with torchrun_process_group():
        model, exchanges = OneWeight(), []
        shared = average_gradients(model)
        shared.register_comm_hook(exchanges, count_exchange)
        trainer = AccumulatingTrainer(
            model=shared,
            data_loader=[[{"value": value}] for value in ((0.0, 1.0), (1.0, 0.0))[comm.get_rank()]],
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            accumulation_steps=2,
        )
        with EventStorage():
            trainer.run_step()
        return model.weight.item(), len(exchanges)


# No annotations: DDP checks them and does not accept strings.
def count_exchange(exchanges, bucket):
    exchanges.append(bucket.index())
    return allreduce_hook(None, bucket)


def test_gradients_of_several_micro_batches_are_exchanged_once() -> None:
    assert torchrun(train_two_micro_batches) == [(0.5, 1)] * 2


@pytest.fixture
def arguments() -> argparse.Namespace:
    return default_argument_parser().parse_args(["--num-gpus", "2"])


def test_more_processes_than_gpus_are_an_error(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus is 2, this machine has 1"):
        launch(print, arguments)


def test_num_gpus_under_torchrun_is_an_error(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="torchrun has already started .* remove --num-gpus"):
        launch(print, arguments)


def test_without_torchrun_detectron2_starts_the_processes(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        distributed, "detectron2_launch", lambda *args, **kwargs: started.append((args, kwargs))
    )
    launch(print, arguments)
    ((main, num_gpus), options) = started[0]
    assert (main, num_gpus, options["num_machines"]) == (print, 2, 1)
