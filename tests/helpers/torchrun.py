"""torchrun in a test: its agent, with processes that are forked and so start at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def torchrun(
    function: Callable[..., Any], *args: Any, num_processes: int = 2, start_method: str = "fork"
) -> list[Any]:
    """What ``function(*args)`` returns in each process, in the order of ranks.

    Args:
        start_method: "spawn" for what can be imported and takes gradients: forked processes have
            none where a test has started autograd's threads.

    Raises:
        ChildFailedError: a process failed; the others have been ended.
    """
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
    results = elastic_launch(config, _call)(function, *args)
    return [results[rank] for rank in range(num_processes)]


def _call(function: Callable[..., Any], *args: Any) -> Any:
    # OpenMP's threads do not live on in a fork.
    torch.set_num_threads(1)
    return function(*args)
