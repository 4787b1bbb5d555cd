"""tools/train_net.py in a process of its own, which may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable

import torch
import train_net
from detectron2.engine import HookBase, default_argument_parser

# Known to the child, which imports this module: the stand-in model of some configs.
from helpers import stand_in  # noqa: F401

from glipv2_d2.engine.train.distributed import launch
from glipv2_d2.engine.train.trainer import Trainer


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
    # Not a fork: once some test has started autograd's threads, a forked child has no gradients.
    child = multiprocessing.get_context("spawn").Process(target=_call, args=(function, *args))
    child.start()
    child.join()
    return child.exitcode


def _call(function: Callable[..., object], *args: object) -> None:
    torch.set_num_threads(1)
    function(*args)


def run(*arguments: str) -> None:
    launch(train_net.main, default_argument_parser().parse_args(list(arguments)))


def run_and_die(*arguments: str) -> None:
    train_net.Trainer = KillableTrainer
    run(*arguments)
