"""Labelling and prediction on Ray actors, one of which is killed, against the plain loop.

    python tests/product/ray_check.py

Starts Ray on this machine. Checks that a run with a killed actor and one that is interrupted and
continued write the files of the plain loop, and that no process is left. Prints images per second
of the plain loop, one actor and two, each with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from skimage import data

from glipv2_cli.main import main as glipv2
from glipv2_d2 import Predictor
from glipv2_d2.batch_prediction import FilePrompts
from glipv2_d2.engine.ray_actors import RayActors, connect
from glipv2_d2.engine.shards import RunShards, run_here
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.inference.labelling import ImageLabelling, label_images

CLASSES = ["cat", "cup", "person", "rocket"]
# Without cut-outs, which are most of the time.
OPTS = ["MODEL.EVIDENCE.NUM_CUTOUTS", "0"]
FORMATS = ("coco", "yolo", "csv")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
BATCH_SIZE = 2

Label = Callable[[str, RunShards, "Progress"], dict[str, bytes]]


class Progress:
    """Stands for the progress bar: the time of each result, and a call in the middle."""

    def __init__(self, in_the_middle: Callable[[], object] = lambda: None) -> None:
        self.times: list[float] = []
        self.in_the_middle = in_the_middle

    def __call__(self, total: int, initial: int, unit: str) -> Progress:
        self.middle = (total - initial) // 2
        return self

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        before = len(self.times)
        self.times += [time.monotonic()] * count
        if before < self.middle <= len(self.times):
            self.in_the_middle()

    @property
    def rate(self) -> float:
        """Images per second of the second half: in the first, the last actor loads its model."""
        start = len(self.times) // 2
        return (len(self.times) - 1 - start) / (self.times[-1] - self.times[start])


def build_predictor(_rank: int, pids: Path) -> Predictor:
    """For the actors, whose process ids are the names of files."""
    torch.set_num_threads(1)
    (pids / str(os.getpid())).touch()
    return Predictor("glipv2-mini", device="cpu", opts=OPTS)


def make_photos(folder: Path, count: int) -> list[str]:
    """Small photos, the last of which is damaged."""
    folder.mkdir()
    for number in range(count):
        name = PHOTOS[number % len(PHOTOS)]
        photo = Image.fromarray(getattr(data, name)()).resize((160 + number, 120))
        photo.save(folder / f"{number:03d}_{name}.png")
    (folder / f"{count:03d}_damaged.png").write_bytes(b"damaged")
    return [str(path) for path in sorted(folder.iterdir())]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        check(Path(name), args.images)
    assert not (left := children()), f"processes are left: {left}"
    return 0


def check(folder: Path, num_images: int) -> None:
    photos = make_photos(folder / "photos", num_images)
    pids = folder / "pids"
    pids.mkdir()

    def label(name: str, run: RunShards, progress: Progress) -> dict[str, bytes]:
        task = ImageLabelling(
            build_predictor=functools.partial(build_predictor, pids=pids),
            model="glipv2-mini",
            images=photos,
            prompts=FilePrompts(CLASSES),
            thresholds=ScoreThresholds({}, 0.3),
            output=folder / name,
            shard_size=8,
            batch_size=BATCH_SIZE,
        )
        report = label_images(task, FORMATS, run=run, progress=progress)
        assert (report.num_images, len(report.left_out)) == (num_images, 1), report
        return files(folder / name)

    plain = Progress()
    expected = label("plain", run_here, plain)
    print(f"plain loop: {plain.rate:.2f} images per second", flush=True)

    with connect("local", num_actors=2, num_cpus=1, num_gpus=0) as two_actors:
        # Reads the environment, which connect() sets.
        import ray

        # Ray binds no other address of the machine.
        assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
        one_actor = dataclasses.replace(two_actors, num_actors=1)
        check_interrupted(label, expected, one_actor, two_actors, plain.rate)
        check_killed(label, expected, two_actors, pids)
        processes = children()
    assert_no_cluster(photos[0], folder)
    check_predict(folder)
    # Ray's agents, which have no parent by now, end a minute after it.
    end = time.monotonic() + 180
    while left := [processes[pid] for pid in processes if command_of(pid)]:
        assert time.monotonic() < end, f"processes are left: {left}"
        time.sleep(1)


def assert_no_cluster(photo: str, folder: Path) -> None:
    output = folder / "none"
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        images = ["--images", photo, "--classes", "cat"]
        code = glipv2(["label", *images, "--output", str(output), "--ray", "auto"])
    lines = printed.getvalue().splitlines()
    assert code == 2 and "no connection to a Ray cluster at auto" in lines[-1], lines
    assert not output.exists()
    print(f"without a cluster: {lines[-1]}")


def check_killed(label: Label, expected: dict[str, bytes], actors: RayActors, pids: Path) -> None:
    for path in pids.iterdir():
        path.unlink()
    results: Counter[int] = Counter()

    class Counting(RayActors):
        def map(self, build: Any, items: Any) -> Iterator[tuple[int, Any]]:
            for index, result in super().map(build, items):
                results[index] += 1
                yield index, result

    def kill() -> None:
        os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)

    counting = Counting(**dataclasses.asdict(actors))
    assert label("killed", counting.run_shards, Progress(kill)) == expected
    assert set(results.values()) == {1}, results
    num_processes = len(list(pids.iterdir()))
    assert num_processes == 3, f"{num_processes} processes had a model"
    print(f"an actor of two killed: each of {len(results)} batches once; the same files")


def check_interrupted(
    label: Label,
    expected: dict[str, bytes],
    one_actor: RayActors,
    two_actors: RayActors,
    plain_rate: float,
) -> None:
    """A run that one actor begins and two finish."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    first, second = Progress(interrupt), Progress()
    with contextlib.suppress(KeyboardInterrupt):
        label("interrupted", one_actor.run_shards, first)
        raise AssertionError("it is not interrupted")
    assert label("interrupted", two_actors.run_shards, second) == expected
    for name, progress in (("1 actor", first), ("2 actors", second)):
        ratio = progress.rate / plain_rate
        print(f"{name}: {progress.rate:.2f} images per second, {ratio:.2f} times the plain loop")
    print(
        f"interrupted after {len(first.times)} images, {len(second.times)} when continued: the "
        "files of the plain loop",
        flush=True,
    )


def check_predict(folder: Path) -> None:
    arguments = [str(folder / "photos"), "--classes", ", ".join(CLASSES), "--save", *FORMATS]
    outputs = {}
    for name, ray in (("predict", []), ("predict_ray", ["--ray", "local", "--actors", "2"])):
        output = ["--output", str(folder / name), "--batch-size", str(BATCH_SIZE)]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = glipv2(["predict", *arguments, *output, *ray, "--opts", *OPTS])
        assert code == 1, printed.getvalue()
        assert printed.getvalue().count("skipped: ") == 1, printed.getvalue()
        outputs[name] = files(folder / name)
    assert outputs["predict"] == outputs["predict_ray"]
    print(f"glipv2 predict --ray local --actors 2: the same {len(outputs['predict'])} files")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.txt"
    }


def children() -> dict[int, str]:
    """The command lines of processes below this one, by id."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may have spaces: the state and the parent.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    commands = {pid: command_of(pid) for pid in below - {os.getpid()}}
    return {pid: command for pid, command in commands.items() if command}


def command_of(pid: int) -> str:
    """The command line of a process; "" after its end."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


if __name__ == "__main__":
    # Before the first computation, also of the actors.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.exit(main())
