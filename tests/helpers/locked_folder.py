"""A training in another process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glipv2_d2.engine.train.output_lock import output_lock


@dataclass
class OtherTraining:
    """Process numbers of a training and of its loader, a fork that does not end with it."""

    process: int
    loader: int

    def kill(self) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            self.process = 0


@contextmanager
def locked_by_another_process(folder: Path) -> Iterator[OtherTraining]:
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        with output_lock(folder):
            loader = os.fork()
            if loader:
                os.write(write, f"{loader}\n".encode())
            time.sleep(600)
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        training = OtherTraining(process, int(file.readline()))
    try:
        yield training
    finally:
        training.kill()
        os.kill(training.loader, signal.SIGKILL)
