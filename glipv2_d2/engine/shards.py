"""Work on many items in shards: with several processes and machines, and resumption.

The output folder::

    settings.json                  settings of the first run; later runs must have the same
    shards/00000.jsonl (or .tar)   results of consecutive items; exists once the shard is complete
    shards/00000.account.json      what happened to the items of the shard
    manifest.json                  the shards with their numbers of items and bytes, when all are
                                   complete

Files are written atomically, and the division into shards is the same in every run: a resumed run
repeats only the shards that were in progress.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from glipv2_d2.file_writing import atomic_open, dump_json

Advance = Callable[[int], Any]
"""Called with the number of items that were done since the last call."""

no_progress = functools.partial(tqdm, disable=True)

Item = TypeVar("Item")

SETTINGS_FILE = "settings.json"
MANIFEST_FILE = "manifest.json"

# Seconds between two updates of the progress of other processes.
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Shard:
    """Consecutive items, and the file of their results."""

    path: Path
    items: list[Any]

    @property
    def account_path(self) -> Path:
        return self.path.with_suffix(".account.json")

    @property
    def is_complete(self) -> bool:
        return self.path.is_file()

    def account(self) -> dict[str, Any]:
        """What :meth:`write` was given."""
        account: dict[str, Any] = json.loads(self.account_path.read_text(encoding="utf-8"))
        return account

    def write(self, account: Mapping[str, Any], write_results: Callable[[Any], None]) -> None:
        """Write the account and then, with a function of the open file, the results."""
        with atomic_open(self.account_path) as file:
            file.write(dump_json(account).encode())
        with atomic_open(self.path) as file:
            write_results(file)


@dataclass(frozen=True)
class Part:
    """Every ``count``-th item, from the item ``number`` (from 1): the part of one machine."""

    number: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> Part:
        """
        Raises:
            ValueError: the text is not like "2/8".

        >>> Part.parse("2/8")
        Part(number=2, count=8)
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"{text!r} is not a part such as 2/8, the second of eight")
        return Part(int(match[1]), int(match[2]))

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        return items[self.number - 1 :: self.count]

    @property
    def is_whole(self) -> bool:
        return self.count == 1


WHOLE = Part()


class ShardTask(Protocol):
    """What is done with the items of a shard; it is sent to other processes."""

    @property
    def batch_size(self) -> int:
        """Items that :meth:`build`'s function processes at a time."""

    def build(self, rank: int) -> Callable[[Sequence[Any]], Iterable[Any]]:
        """Load the model; return the function of consecutive items -> one result per item.

        Args:
            rank: number of the process, from 0, which selects its GPU.
        """

    def write(self, shard: Shard, results: Sequence[Any]) -> None:
        """Write the files of a shard from the results of its items."""


RunShards = Callable[[ShardTask, Sequence[Shard], Advance], None]
"""Completes shards: in this process, in several, or on a cluster."""


def split(items: Sequence[Any], folder: Path, shard_size: int, suffix: str) -> list[Shard]:
    """Divide items into shards, whose files are in ``folder`` and have ``suffix``."""
    starts = range(0, len(items), shard_size)
    # Numbers of equal length, for brace patterns.
    num_digits = max(5, len(str(len(starts) - 1)))
    return [
        Shard(
            folder / f"{number:0{num_digits}}{suffix}",
            list(items[start : start + shard_size]),
        )
        for number, start in enumerate(starts)
    ]


def process_shards(
    task: ShardTask,
    shards: Sequence[Shard],
    part: Part,
    *,
    run: RunShards,
    progress: Callable[..., tqdm] = no_progress,
    unit: str,
) -> int:
    """Do the shards of a part that are not complete; return how many of ``shards`` are not.

    Args:
        run: :func:`run_here`, :func:`run_in_processes`, or that of
            :class:`~glipv2_d2.engine.ray_actors.RayActors`.
        progress: builds the progress bar; has the signature of tqdm.
        unit: of the progress: what an item is.

    Raises:
        ChildProcessError: a process died.
    """
    own = part.of(shards)
    to_do = [shard for shard in own if not shard.is_complete]
    num_items, num_to_do = (sum(len(shard.items) for shard in group) for group in (own, to_do))
    with progress(total=num_items, initial=num_items - num_to_do, unit=unit) as bar:
        if to_do:
            run(task, to_do, bar.update)
    return sum(not shard.is_complete for shard in shards)


def run_here(task: ShardTask, shards: Sequence[Shard], advance: Advance) -> None:
    """Do shards in this process, one after the other."""
    process = task.build(0)
    for shard in shards:
        _do_shard(task, process, shard, advance)


def run_in_processes(
    task: ShardTask, shards: Sequence[Shard], advance: Advance, *, num_processes: int
) -> None:
    """Do shards in processes that share them. Each loads its own model.

    Raises:
        ChildProcessError: a process died.
    """
    if num_processes < 1:
        raise ValueError(f"the number of processes is {num_processes}; it must be at least 1")
    if num_processes == 1:
        run_here(task, shards, advance)
    else:
        _process_in_pool(task, shards, min(num_processes, len(shards)), advance)


def _do_shard(
    task: ShardTask,
    process: Callable[[Sequence[Any]], Iterable[Any]],
    shard: Shard,
    advance: Advance,
) -> None:
    results = []
    for result in process(shard.items):
        results.append(result)
        advance(1)
    task.write(shard, results)


def write_manifest(output: Path, shards: Sequence[Shard]) -> None:
    """List the files of complete shards, relative to ``output``, in the order of their items."""
    rows = [
        {
            "file": shard.path.relative_to(output).as_posix(),
            "num_items": len(shard.items),
            "num_bytes": shard.path.stat().st_size,
        }
        for shard in shards
    ]
    with atomic_open(output / MANIFEST_FILE) as file:
        file.write(dump_json({"shards": rows}, indent=1).encode())


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new folder, or compare them with those of an existing one.

    Raises:
        ValueError: the settings differ; shards of both runs must not be mixed.
    """
    path = output / SETTINGS_FILE
    if not path.exists():
        # A name of its own, as machines that do parts may start at the same moment.
        number, name = tempfile.mkstemp(".partial", path.name, output)
        with open(number, "wb") as file:
            file.write(dump_json(settings, indent=1).encode())
        os.replace(name, path)
    try:
        existing = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{path}' has no settings ({error}); use another folder") from error
    changed = [
        f"{key} was {existing.get(key)!r} and is {value!r}"
        for key, value in json.loads(dump_json(settings)).items()
        if existing.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"the output folder '{output}' was started with other settings: "
            f"{'; '.join(changed)}. Use the same settings, or another folder"
        )


def digest(texts: Iterable[str]) -> str:
    """Hash of strings in order. JSON separates the strings and encodes lone surrogates."""
    state = hashlib.sha256()
    for text in texts:
        state.update(json.dumps(text).encode())
    return state.hexdigest()[:16]


def device_of(rank: int, device: str) -> str:
    """The device of a process: of several GPUs the next one, if no single one is chosen."""
    return f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" else device


# Processes


def _process_in_pool(
    task: ShardTask, shards: Sequence[Shard], num_processes: int, advance: Advance
) -> None:
    # Processes are forked from a server that has imported everything and computed nothing: faster
    # than spawning, and safe with CUDA and OpenMP.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(task).__module__])
    num_started, num_done = context.Value("q", 0), context.Value("q", 0)
    num_reported = 0
    with _pool(context, num_processes, (task, num_processes, num_started, num_done)) as pool:
        pending = {pool.submit(_process_one, shard) for shard in shards}
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            num_now = num_done.value
            advance(num_now - num_reported)
            num_reported = num_now
            for future in done:
                future.result()


@contextmanager
def _pool(
    context: Any, num_processes: int, arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """A process pool that starts no further shard after a failure."""
    pool = ProcessPoolExecutor(num_processes, context, _start_process, arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a labelling process died, perhaps out of memory. Completed shards are kept: run the "
            "same command again, with fewer processes if necessary"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Process:
    """State of a pool process between shards."""

    def __init__(
        self, task: ShardTask, num_processes: int, num_started: Any, num_done: Any
    ) -> None:
        self.task = task
        self.num_done = num_done
        with num_started.get_lock():
            self.rank = num_started.value
            num_started.value += 1
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))

    @functools.cached_property
    def process(self) -> Callable[[Sequence[Any]], Iterable[Any]]:
        """Built with the first shard, so that an error is raised in the caller."""
        return self.task.build(self.rank)

    def advance(self, num_items: int) -> None:
        with self.num_done.get_lock():
            self.num_done.value += num_items


_process: _Process


def _start_process(*arguments: Any) -> None:
    global _process
    _process = _Process(*arguments)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent is killed; a pool process would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _process_one(shard: Shard) -> None:
    _do_shard(_process.task, _process.process, shard, _process.advance)
