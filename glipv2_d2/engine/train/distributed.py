"""Distributed training: launching processes and averaging gradients."""

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

# Variables that torchrun sets in each process, besides MASTER_ADDR and MASTER_PORT.
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process.

    Processes started by torchrun join through their environment variables. Otherwise Detectron2
    starts ``args.num_gpus`` processes on this machine.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        ValueError: the machine has fewer GPUs, or --num-gpus is set under torchrun.
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
            "torchrun has already started the processes: remove --num-gpus and --num-machines"
        )
    with torchrun_process_group():
        main(args)


def started_by_torchrun() -> bool:
    """Whether the environment has torchrun's rank and world size."""
    return all(name in os.environ for name in _TORCHRUN_VARIABLES)


@contextmanager
def torchrun_process_group() -> Iterator[None]:
    """Join torchrun's process group: NCCL with CUDA, else Gloo.

    Raises:
        ValueError: this machine has fewer GPUs than processes.
    """
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        _check_num_gpus(local_size, "torchrun's --nproc-per-node")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Detectron2's timeout: other processes wait while the main process computes metrics.
    dist.init_process_group("nccl" if has_cuda else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    yield
    # Not after an error: other processes may wait in a collective; torchrun terminates them.
    dist.destroy_process_group()


def _check_num_gpus(number: int, option: str) -> None:
    if number > max(1, torch.cuda.device_count()):
        raise ValueError(f"{option} is {number}, this machine has {torch.cuda.device_count()}")


def average_gradients(model: nn.Module) -> nn.Module:
    """Wrap a model in DistributedDataParallel when there are several processes.

    As Detectron2's trainer does, and also on a CPU, where DDP accepts no ``device_ids``.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    devices = {"device_ids": None} if on_cpu else {}
    return create_ddp_model(model, broadcast_buffers=False, **devices)
