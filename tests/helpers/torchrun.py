"""torchrun in a test: its agent, with processes that start at once."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

# The signals for which torchrun's agent sets handlers.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

# Where processes are forks of one that has done nothing but import these.
PRELOADED = ["torch", "detectron2.engine", "glipv2_d2.engine.train.trainer", "glipv2_d2.evaluation"]


def torchrun(
    function: Callable[..., Any],
    *args: Any,
    num_processes: int = 2,
    start_method: str = "forkserver",
) -> list[Any]:
    """What ``function(*args)`` returns in each process, in the order of ranks.

    Args:
        function: of a module's top level, since the processes import it.
        start_method: "fork" for what reads data sets that the test has registered. It has no
            gradients where a test before it has started autograd's threads.

    Raises:
        ChildFailedError: a process failed; the others have been ended.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method=start_method,
        max_restarts=0,
        monitor_interval=0.05,
    )
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    try:
        results = elastic_launch(config, _call)(function, *args)
    finally:
        # The agent's own would outlive it, and be inherited by processes of later tests.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return [results[rank] for rank in range(num_processes)]


def _call(function: Callable[..., Any], *args: Any) -> Any:
    torch.set_num_threads(1)
    return function(*args)
