"""The parts of the GPU check; each runs in a process of its own, which imports what it needs."""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "bf16", "fp16")
MAX_BATCH_SIZE = 8
# The only tests with the marker "gpu"; collecting all others takes long.
TESTS = ("tests/gpu", "tests/layers/test_deform_conv.py")
QUICK_TESTS = ("tests/gpu/test_stages.py", "-k", "a_stage and bf16")
SIZE, NUM_CLASSES = (800, 1333), 80
QUICK_SIZE, QUICK_NUM_CLASSES = (64, 96), 2


class Emit(Protocol):
    """Add a row to the report at once: a part that is ended keeps those before."""

    def __call__(
        self, name: str, value: float | str, unit: str = "", *, failure: str = ""
    ) -> None: ...


@dataclass(frozen=True)
class Settings:
    """``folder``: for temporary files. ``quick``: the tests' tiny model on small images."""

    device: str
    quick: bool
    folder: Path

    @property
    def image_size(self) -> tuple[int, int]:
        return QUICK_SIZE if self.quick else SIZE

    @property
    def precisions(self) -> tuple[str, ...]:
        # Without instructions for bf16, a CPU takes minutes to measure its rates.
        return PRECISIONS[:1] if self.quick else PRECISIONS

    @property
    def num_classes(self) -> int:
        return QUICK_NUM_CLASSES if self.quick else NUM_CLASSES

    def config_file(self) -> str:
        """GLIP-T's, or that of the tiny model of the tests."""
        if not self.quick:
            return str(ROOT / "configs" / "glip" / "glip_swin_t.yaml")
        # In the tests of the checkout, which an installed package lacks.
        cfg = importlib.import_module("helpers.models").tiny_cfg()
        path = self.folder / "tiny.yaml"
        path.write_text(cfg.dump(), encoding="utf-8")
        return str(path)


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        rows: names of rows that the report has in any case, "not run" if the part gives none.
        budget_s: seconds after which the part is ended.
    """

    name: str
    run: Callable[[Settings, Emit], None]
    rows: tuple[str, ...]
    budget_s: float
    needs_gpu: bool = False
    is_quick: bool = True


def describe_machine(settings: Settings, emit: Emit) -> None:
    import torch

    emit("torch", torch.__version__)
    emit("Python", platform.python_version())
    if settings.device == "cpu":
        emit("device", platform.machine())
        return
    properties = torch.cuda.get_device_properties(0)
    emit("device", properties.name)
    emit("devices", torch.cuda.device_count())
    emit("device memory", properties.total_memory / 1e9, "GB")


def run_tests(settings: Settings, emit: Emit) -> None:
    """A row per test, and one per property that a test records."""
    import pytest

    class Recorder:
        num_passed = 0

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when != "call" and not report.failed:
                return
            name = report.nodeid.rpartition("::")[2]
            emit(name, report.duration, "s", failure=_last_line(report) if report.failed else "")
            self.num_passed += report.passed
            for key, value in report.user_properties:
                emit(f"{name}: {key}", value)

    recorder = Recorder()
    os.chdir(ROOT)
    tests = QUICK_TESTS if settings.quick else TESTS
    marker = "gpu" if settings.device == "cuda" else "not gpu"
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-m", marker, *tests], plugins=[recorder])
    emit("tests passed", recorder.num_passed, failure="" if code == 0 else f"pytest: {code!r}")


def _last_line(report: Any) -> str:
    return (report.longreprtext.strip().splitlines() or ["failed"])[-1]


def benchmark(settings: Settings, emit: Emit, row: str, *arguments: str) -> None:
    """Rows of ``glipv2 benchmark``: the run, each stage and the peak memory."""
    from glipv2_cli import benchmark as command
    from glipv2_d2.profiling.report import BenchmarkReport

    path = settings.folder / "benchmark.json"
    size = [str(side) for side in settings.image_size]
    repeats = ("--warmup", "0", "--repeats", "1") if settings.quick else ("--repeats", "10")
    command.main(
        [
            *("--config", settings.config_file(), "--device", settings.device),
            *("--image-size", *size, "--num-classes", str(settings.num_classes)),
            *("--json", str(path), "--log", str(settings.folder), *repeats, *arguments),
        ]
    )
    report = BenchmarkReport.read(path)
    emit(row, 1000 * report.total["wall_s"], "ms")
    for stage, amounts in report.stages.items():
        emit(f"{row}: {stage}", 1000 * amounts["wall_s"], "ms")
    emit(f"{row}: peak memory", report.peak_bytes / 1e9, "GB")


def inference(settings: Settings, emit: Emit) -> None:
    for precision in settings.precisions:
        benchmark(settings, emit, f"inference {precision}", "--precision", precision)


def training(settings: Settings, emit: Emit) -> None:
    for precision in settings.precisions[:2]:
        benchmark(settings, emit, f"training {precision}", "--train", "--precision", precision)


def compiled(settings: Settings, emit: Emit) -> None:
    benchmark(settings, emit, "inference bf16, compiled", "--compile", "--precision", "bf16")


def training_memory(settings: Settings, emit: Emit) -> None:
    """Peaks of forward and backward passes in bf16; out of memory is a result."""
    import torch
    from detectron2.modeling import build_model

    from glipv2_d2.engine.setup import load_config
    from glipv2_d2.profiling.memory import peaks_by_batch_size
    from glipv2_d2.profiling.synthetic_inputs import benchmark_class_names, random_inputs

    cfg = load_config(settings.config_file(), ["MODEL.DEVICE", settings.device])
    model = build_model(cfg).train()
    names = benchmark_class_names(settings.num_classes)

    def step(batch_size: int) -> None:
        inputs = random_inputs(batch_size, settings.image_size, names, with_masks=False)
        model.zero_grad()
        with torch.autocast(settings.device, dtype=torch.bfloat16):
            losses = model(inputs)
        sum(losses.values()).backward()

    sizes = range(1, MAX_BATCH_SIZE + 1)
    for size, peak in peaks_by_batch_size(step, sizes, torch.device(settings.device)):
        row = f"training memory, batch {size}"
        emit(row, "out of memory") if peak is None else emit(row, peak / 1e9, "GB")


def cuda_graph(settings: Settings, emit: Emit) -> None:
    """Seconds of an image with and without the graph, in turns."""
    import torch
    from detectron2.modeling import build_model

    from glipv2_d2.engine.setup import load_config
    from glipv2_d2.profiling.cuda_graph import GraphedDetector
    from glipv2_d2.profiling.grounding_dino import time_in_turns
    from glipv2_d2.profiling.synthetic_inputs import benchmark_class_names, random_inputs

    device = torch.device(settings.device)
    model = build_model(
        load_config(settings.config_file(), ["MODEL.DEVICE", settings.device])
    ).eval()
    names = benchmark_class_names(settings.num_classes)
    for height, width in ((320, 320), settings.image_size):
        inputs = random_inputs(1, (height, width), names, with_masks=False)

        def autocast() -> torch.autocast:
            return torch.autocast(settings.device, dtype=torch.bfloat16)

        graph = GraphedDetector(model, inputs, autocast=autocast)

        def eager(inputs: list[dict[str, Any]] = inputs) -> None:
            with torch.no_grad(), autocast():
                model(inputs)

        runs = {"eager": eager, "CUDA graph": lambda x=inputs, run=graph: run(x)}
        seconds = time_in_turns(runs, device, range(23), warmup=3)
        for name, samples in seconds.items():
            emit(f"{height} x {width}, {name}", 1000 * statistics.median(samples), "ms")


def grounding_dino(settings: Settings, emit: Emit) -> None:
    import json

    import compare_grounding_dino

    for precision in settings.precisions[:2]:
        path = settings.folder / "comparison.json"
        size = [str(side) for side in settings.image_size]
        code = compare_grounding_dino.main(
            [
                *("--config-file", settings.config_file(), "--device", settings.device),
                *("--image-size", *size, "--num-classes", str(settings.num_classes)),
                *("--precision", precision, "--warmup", "3", "--repeats", "10"),
                *("--json", str(path)),
            ]
        )
        if code:
            raise RuntimeError(f"compare_grounding_dino.py ended with code {code}, see the log")
        for name, samples in json.loads(path.read_text())["seconds"].items():
            emit(f"{name} {precision}", 1000 * statistics.median(samples), "ms")


_BATCH_ROWS = tuple(f"training memory, batch {size}" for size in range(1, MAX_BATCH_SIZE + 1))
_GRAPH_ROWS = tuple(
    f"{size}, {name}"
    for size, name in itertools.product(("320 x 320", "800 x 1333"), ("eager", "CUDA graph"))
)
_COMPARED = tuple(
    f"{name} {precision}"
    for precision, name in itertools.product(
        PRECISIONS[:2], ("this project", "Grounding DINO tiny")
    )
)

PARTS = (
    # The first part waits for the imports, which the others share.
    Part("machine", describe_machine, ("device", "torch"), 120),
    Part("tests", run_tests, ("tests passed",), 150),
    Part("inference", inference, tuple(f"inference {x}" for x in PRECISIONS), 90),
    Part("memory", training_memory, _BATCH_ROWS, 60, needs_gpu=True),
    Part("CUDA graph", cuda_graph, _GRAPH_ROWS, 60, needs_gpu=True),
    Part("Grounding DINO", grounding_dino, _COMPARED, 90, is_quick=False),
    Part("training", training, tuple(f"training {x}" for x in PRECISIONS[:2]), 90, is_quick=False),
    Part("compile", compiled, ("inference bf16, compiled",), 120, is_quick=False),
)
