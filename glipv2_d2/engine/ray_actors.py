"""Batches of items on actors of a Ray cluster, each with a model of its own.

Ray Data streams the items to the actors and their results back, in the order of completion. What
becomes of the results is decided in the calling process, which alone writes files: the nodes need
the package, the model and the images at the same paths, but no folder for output.

Only :meth:`RayActors.map` and :func:`connect` import Ray, which is an extra.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import re
import socket
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glipv2_d2.engine.ray_pipeline import MAX_ATTEMPTS, Failure, Lost, Pipeline
from glipv2_d2.engine.shards import Advance, Shard, ShardTask

# For paths and results; images are read by the actors.
_LOCAL_STORE_BYTES = 200 * 2**20
_CONNECT_SECONDS = 10.0

_CLIENT = "ray://"
_ADDRESS = re.compile(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", re.ASCII)

logger = logging.getLogger(__name__)


def check_address(address: str) -> None:
    """
    Raises:
        ValueError: it is not "local", "auto", "HOST:PORT" or "ray://HOST:PORT".
    """
    if address not in ("local", "auto") and _ADDRESS.fullmatch(address) is None:
        raise ValueError(
            f"{address!r} is not the address of a Ray cluster: local, auto, HOST:PORT or "
            "ray://HOST:PORT"
        )


@dataclass(frozen=True)
class RayActors:
    """Actors on the cluster to which this process is connected, see :func:`connect`.

    Attributes:
        num_actors: at most; those for which the cluster has no room wait for it.
        num_cpus, num_gpus: of each actor.
        is_client: whether the cluster is reached by "ray://".
    """

    num_actors: int
    num_cpus: float
    num_gpus: float
    is_client: bool = False

    def map(
        self, build: Callable[[], Callable[[Any], Any]], items: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yield the index and the result of each item once, in the order of completion.

        Args:
            build: called by each actor; loads the model and returns the function of an item. It is
                sent there, as are the items and results.

        Yields:
            None as the result of an item whose actor died each time, see
            :mod:`~glipv2_d2.engine.ray_pipeline`.

        Raises:
            ValueError: ``build`` or the function raised an error.
            ChildProcessError: Ray failed.
        """
        if not items:
            return
        rows = [pickle.dumps((index, item)) for index, item in enumerate(items)]
        seen: set[int] = set()
        with _ray_errors():
            take = self._start(build, rows)
        while True:
            with _ray_errors():
                batch = take()
            if batch is None:
                break
            for index, result in map(pickle.loads, batch):
                if isinstance(result, Failure):
                    raise result.to_error()
                # A block is repeated if its node dies before this process has fetched it.
                if index not in seen:
                    seen.add(index)
                    yield index, None if isinstance(result, Lost) else result
        if len(seen) < len(items):
            raise ChildProcessError(
                f"Ray returned no result for {len(items) - len(seen)} of {len(items)} batches. "
                "What is done is kept: run the same command again"
            )

    def run_shards(self, task: ShardTask, shards: Sequence[Shard], advance: Advance) -> None:
        """Do shards on the actors; the function for
        :func:`~glipv2_d2.engine.shards.process_shards`.

        Batches are those of one process, so that the results are the same.

        Raises:
            ChildProcessError: actors died with some of the items; the other shards are complete.
        """
        places = [
            (number, start)
            for number, shard in enumerate(shards)
            for start in range(0, len(shard.items), task.batch_size)
        ]
        batches = [
            shards[number].items[start : start + task.batch_size] for number, start in places
        ]
        num_missing = Counter(number for number, _ in places)
        results: defaultdict[int, dict[int, list[Any]]] = defaultdict(dict)
        lost: list[Any] = []
        for index, result in self.map(functools.partial(_build_task, task), batches):
            number, start = places[index]
            if result is None:
                lost += batches[index]
                continue
            advance(len(result))
            results[number][start] = result
            num_missing[number] -= 1
            if not num_missing[number]:
                parts = results.pop(number)
                task.write(shards[number], [x for start in sorted(parts) for x in parts[start]])
        if lost:
            raise ChildProcessError(lost_text(lost))

    def _start(
        self, build: Callable[[], Callable[[Any], Any]], rows: list[bytes]
    ) -> Callable[[], list[bytes] | None]:
        arguments = (build, rows, min(self.num_actors, len(rows)), self.num_cpus, self.num_gpus)
        if not self.is_client:
            return Pipeline(*arguments).take
        # Ray Data does not run in a client.
        import ray

        pipeline = ray.remote(num_cpus=0)(Pipeline).remote(*arguments)
        return lambda: ray.get(pipeline.take.remote())


def lost_text(items: Sequence[Any]) -> str:
    """Of items whose actor died every time."""
    return (
        f"the actor died {MAX_ATTEMPTS} times, perhaps out of memory, with each of "
        f"{len(items)} items, the first {items[0]!r}. What is done is kept: leave them out, or run "
        "the same command again, with a smaller --batch-size or on nodes with more memory"
    )


@contextlib.contextmanager
def connect(
    address: str, *, num_actors: int, num_cpus: float, num_gpus: float | None
) -> Iterator[RayActors]:
    """Connect to a Ray cluster; "local" starts one, which ends with the context.

    Args:
        address: see :func:`check_address`.
        num_gpus: of each actor; None: 1 if the cluster has GPUs, else 0.

    Raises:
        ValueError: the address is malformed, or no node has room for an actor.
        ConnectionError: there is no such cluster.
        ModuleNotFoundError: Ray is not installed.
    """
    check_address(address)
    if match := _ADDRESS.fullmatch(address):
        # Ray itself tries for two minutes.
        _check_port(address, match[1].strip("[]"), int(match[2]))
    # Ray reads these once. No statistics are sent; the messages of its C++ part are for developers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == "local":
        # Loopback addresses only, as on Windows and macOS; else Ray binds all of the machine.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Ray Data cannot be imported ({error}): pip install 'glipv2_d2[ray]'"
        ) from error
    _connect(address)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if num_gpus is None:
            num_gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
        _check_room(nodes, num_actors, num_cpus, num_gpus)
        yield RayActors(num_actors, num_cpus, num_gpus, address.startswith(_CLIENT))
    finally:
        ray.shutdown()


def _check_port(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}); start one with: ray start --head, or "
            "use --ray local"
        ) from error


def _connect(address: str) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
        }
    try:
        ray.init(address=address, **options)
    # Ray exits where another service answers, or where it is at another address of the machine.
    except (Exception, SystemExit) as error:
        logger.info("%s", traceback.format_exc())
        causes = "".join(traceback.format_exception(error))
        reason = str(error).partition("\n")[0] or type(error).__name__
        hint = "start one with: ray start --head, or use --ray local"
        if "Authentication" in causes:
            reason = "it needs a token"
            hint = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the token"
        elif isinstance(error, SystemExit):
            reason = "Ray does not answer there"
            hint = "use the address that `ray start` prints"
        raise ConnectionError(
            f"no connection to a Ray cluster at {address} ({reason}); {hint}"
        ) from error


def _check_room(
    nodes: Sequence[dict[str, float]], num_actors: int, num_cpus: float, num_gpus: float
) -> None:
    requested = {"CPU": num_cpus, "GPU": num_gpus}
    room = sum(
        int(min(node.get(kind, 0) / number for kind, number in requested.items() if number))
        for node in nodes
    )
    if not room:
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in requested}
        raise ValueError(
            f"an actor of {num_cpus:g} CPUs and {num_gpus:g} GPUs fits on no node of the Ray "
            f"cluster, which has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} "
            "nodes: change --cpus-per-actor or --gpus-per-actor"
        )
    if room < num_actors:
        logger.warning(
            "the Ray cluster has room for %d of %d actors; the others start if it grows",
            room,
            num_actors,
        )


@contextlib.contextmanager
def _ray_errors() -> Iterator[None]:
    """Ray's errors, which have long tracebacks, in one line; the log has the rest."""
    try:
        yield
    except Exception as error:
        logger.info("%s", traceback.format_exc())
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[-1] if lines else type(error).__name__)[:300]
        raise ChildProcessError(
            f"Ray ended the run ({type(error).__name__}: {reason}). What is done is kept: the same "
            "command continues"
        ) from error


def _build_task(task: ShardTask) -> Callable[[Sequence[Any]], list[Any]]:
    process = task.build(0)
    return lambda items: list(process(items))
