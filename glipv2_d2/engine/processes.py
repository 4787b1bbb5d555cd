"""One training in several processes, on one machine or several."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn

# What torchrun tells each of its processes, besides MASTER_ADDR and MASTER_PORT.
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of a training.

    Processes that torchrun has started find each other by their environment. Otherwise Detectron2
    starts ``args.num_gpus`` of them on this machine.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        ValueError: there are not as many GPUs, or the processes are asked for twice.
    """
    if not started_by_torchrun():
        _check_num_gpus(args.num_gpus, "--num-gpus")
        detectron2_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
        return
    if args.num_gpus > 1 or args.num_machines > 1:
        raise ValueError(
            "torchrun has started the processes already: leave out --num-gpus and --num-machines"
        )
    with torchrun_process_group():
        main(args)


def started_by_torchrun() -> bool:
    """Whether the environment says which process of how many this one is."""
    return all(name in os.environ for name in _OF_TORCHRUN)


@contextmanager
def torchrun_process_group() -> Iterator[None]:
    """Join the processes that torchrun has started: by NCCL with CUDA, else by Gloo.

    Raises:
        ValueError: there are more processes than GPUs on this machine.
    """
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        _check_num_gpus(local_size, "torchrun's --nproc-per-node")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Detectron2's patience: the others wait while the main process sums up an evaluation.
    dist.init_process_group("nccl" if has_cuda else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    yield
    # Not after an error: the others may be waiting in a collective, and torchrun ends them.
    dist.destroy_process_group()


def _check_num_gpus(number: int, option: str) -> None:
    if number > max(1, torch.cuda.device_count()):
        raise ValueError(f"{option} is {number}, this machine has {torch.cuda.device_count()}")


def average_gradients(model: nn.Module) -> nn.Module:
    """Wrap a model so that backward gives the mean gradient of all processes, if there are several.

    As Detectron2's own trainer does, and also on a CPU, where DDP takes no ``device_ids``.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    devices = {"device_ids": None} if on_cpu else {}
    return create_ddp_model(model, broadcast_buffers=False, **devices)
