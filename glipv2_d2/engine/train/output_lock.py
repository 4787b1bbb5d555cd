"""One training at a time in an output folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm

logger = logging.getLogger(__name__)

LOCK_FILE = ".training.lock"

# The folders that this process has locked.
_locked: set[Path] = set()


@contextlib.contextmanager
def output_lock(folder: str | Path) -> Iterator[None]:
    """Let no other process train in ``folder``, which is created, while the block runs.

    Call it in every process of a distributed training; the main process has the lock. It ends with
    that process, however that ends. Within the block the same process may call it again.

    Raises:
        ValueError: another process trains in the folder.
    """
    path = Path(folder).resolve() / LOCK_FILE
    if path in _locked:
        yield
        return
    with contextlib.ExitStack() as stack:
        refusal = _acquire(path, stack) if comm.is_main_process() else ""
        # All processes stop together.
        if refusal := comm.all_gather(refusal)[0]:
            raise ValueError(refusal)
        _locked.add(path)
        stack.callback(_locked.discard, path)
        yield


def _acquire(path: Path, stack: contextlib.ExitStack) -> str:
    """Lock ``path`` until ``stack`` is closed; returns why not, or ""."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context(path.open("a+"))
    try:
        # Not flock, the lock of the package filelock: the processes of a data loader inherit that
        # one, and hold it for seconds after a kill.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return (
            f"another training ({file.read(80).strip() or 'process unknown'}) writes to "
            f"'{path.parent}': wait until it ends, or set another output folder (OUTPUT_DIR)"
        )
    except OSError as error:
        logger.warning(
            "'%s' cannot be locked (%s): start no second training there", path.parent, error
        )
        return ""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return ""
