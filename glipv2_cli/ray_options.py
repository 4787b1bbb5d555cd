"""The options of subcommands that run on a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from glipv2_cli.arguments import model_config

if TYPE_CHECKING:
    from glipv2_d2.engine.ray_actors import RayActors

_OPTIONS = ("actors", "cpus_per_actor", "gpus_per_actor")
_INSTEAD = {"processes": "--actors", "max_frames": "it is of videos, which --ray does not predict"}


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Ray cluster (extra: ray), whose nodes have the package, the model and the images"
    )
    add = group.add_argument
    add(
        "--ray",
        metavar="ADDRESS",
        help="HOST:PORT or ray://HOST:PORT; auto: the cluster of this machine; local: start one "
        "for this run",
    )
    add("--actors", type=int, metavar="N", help="processes with a model each (default: 1)")
    add("--cpus-per-actor", type=float, metavar="N", help="(default: 1)")
    add(
        "--gpus-per-actor",
        type=float,
        metavar="N",
        help="0.5: two actors share one (default: 1 where the cluster has GPUs, else 0)",
    )


def check_ray_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option is malformed, or does not go with the others.
    """
    from glipv2_d2.engine.ray_actors import check_address

    if args.ray is None:
        if given := [_option(name) for name in _OPTIONS if getattr(args, name) is not None]:
            raise ValueError(f"{', '.join(given)}: only with --ray")
        return
    check_address(args.ray)
    if args.actors is not None and args.actors < 1:
        raise ValueError(f"--actors is {args.actors}; it must be at least 1")
    cpus, gpus = args.cpus_per_actor, args.gpus_per_actor
    if cpus is not None and not 0 < cpus < float("inf"):
        raise ValueError(f"--cpus-per-actor is {cpus:g}; it must be above 0")
    # Ray gives whole GPUs, or a part of one.
    if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise ValueError(f"--gpus-per-actor is {gpus:g}; it must be 0 to 1, or a whole number")
    for name, instead in _INSTEAD.items():
        if getattr(args, name, None) not in (None, 1):
            raise ValueError(f"{_option(name)} is not for --ray: {instead}")
    if args.device is not None and args.device not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device} with --ray: Ray chooses the GPU; use cpu or cuda")
    if gpus is not None and (args.device == "cpu") != (gpus == 0) and args.device is not None:
        raise ValueError(f"--device {args.device} with --gpus-per-actor {gpus:g}: leave one out")


@contextlib.contextmanager
def ray_actors(args: argparse.Namespace) -> Iterator[tuple[RayActors, argparse.Namespace]]:
    """The actors, and the arguments with their device.

    Raises:
        ValueError, OSError: the model is unknown, or there is no such cluster.
        ModuleNotFoundError: Ray is not installed.
    """
    from glipv2_d2.engine.ray_actors import connect

    # An unknown model is an error before anything is written.
    model_config(argparse.Namespace(**{**vars(args), "device": "cpu"}))
    gpus = args.gpus_per_actor
    if args.device is not None and gpus is None:
        gpus = float(args.device == "cuda")
    with connect(
        args.ray, num_actors=args.actors or 1, num_cpus=args.cpus_per_actor or 1, num_gpus=gpus
    ) as actors:
        device = "cuda" if actors.num_gpus else "cpu"
        yield actors, argparse.Namespace(**{**vars(args), "device": device})


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
