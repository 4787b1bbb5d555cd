"""Benchmark of a GLIPv2 model by stage, in inference or training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.optim import Optimizer
from torch.profiler import profile

from glipv2_d2.engine.host_memory import peak_resident_bytes
from glipv2_d2.modeling import GLIPv2, meta_arch, postprocess
from glipv2_d2.profiling.report import (
    BenchmarkReport,
    busy_seconds,
    median_amounts,
    sum_amounts,
    summarize,
)
from glipv2_d2.profiling.stages import (
    Amounts,
    CudaClock,
    HostClock,
    Meter,
    ProductCounter,
    StageRecorder,
    machine_tasks,
)

OTHER = "other"
"""The part of a run outside all stages."""

# The last part of a module's name in the fused head -> its stage.
_STAGE_OF_PART = {
    "fusion": "fusion",
    "language_layer": "language layers",
    "dynamic_conv": "DyConv",
}

# Long enough for the resolution of a GPU's clock, and for a CPU's clock rate to settle (0.1 s).
_TASK_CALLS = {"cpu": 8, "cuda": 20}


class StageBenchmark:
    """Measures the stages of a model on fixed inputs, and the rates of the machine."""

    def __init__(
        self,
        model: GLIPv2,
        inputs: Sequence[dict[str, Any]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        autocast: Callable[[], AbstractContextManager[Any]],
        optimizer: Optimizer | None = None,
        compiled: bool = False,
    ) -> None:
        """Prepare the benchmark.

        Args:
            device: of the model.
            dtype: of the products that measure the machine's rates.
            autocast: context of every forward pass.
            optimizer: measure training steps instead of inference.
            compiled: compile backbone and fused head with torch.compile.
        """
        self.model = model
        self.inputs = inputs
        self.device = device
        self.dtype = dtype
        self.autocast = autocast
        self.optimizer = optimizer
        self.compiled = compiled

    def measure(self, *, warmup: int, repeats: int, settings: dict[str, Any]) -> BenchmarkReport:
        """Count FLOPs and bytes in one run, then time ``repeats`` runs.

        Args:
            warmup: runs between these two, not timed.
            settings: copied into the report.
        """
        report = BenchmarkReport(settings)
        products = self._count_products()
        if self.compiled:
            compile_parts(self.model)
        for _ in range(warmup):
            self._run(StageRecorder(HostClock()))
        # Read before the rates of the machine are measured, which needs memory too.
        report.peak_bytes = self._peak_bytes()
        runs, rates = self._time_runs(repeats)
        report.rates = median_amounts(rates)
        for stage in dict.fromkeys(stage for run in runs for stage in run):
            report.stages[stage] = summarize(
                [run.get(stage, dict.fromkeys(runs[0][OTHER], 0.0)) for run in runs],
                products.get(stage),
                report.rates,
            )
        totals = [sum_amounts(run.values()) for run in runs]
        report.total = summarize(totals, sum_amounts(products.values()), report.rates)
        return report

    def measure_operators(self) -> dict[str, Amounts]:
        """Profile one run: per operator the seconds of its own (``self_s``) and its ``calls``.

        On a CPU these are wall-clock seconds, on CUDA those of its kernels.
        """
        is_cuda = self.device.type == "cuda"
        with profile() as profiler:
            self._run(StageRecorder(HostClock()))
        operators = {}
        for event in profiler.key_averages():
            # Kernels are events of their own; their time is that of the operator, too.
            if event.device_type != DeviceType.CPU or event.is_user_annotation:
                continue
            micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
            if micros > 0:
                name = event.key.removeprefix("aten::")
                operators[name] = {"self_s": micros / 1e6, "calls": float(event.count)}
        return operators

    def _run(self, recorder: StageRecorder) -> None:
        """One inference, or one training step if there is an optimizer."""
        if self.optimizer is None:
            with torch.no_grad(), self.autocast():
                self.model(self.inputs)
            return
        with self.autocast():
            loss = sum(self.model(self.inputs).values())
        # Includes what activation checkpointing computes again.
        with recorder.span("backward", atomic=True):
            loss.backward()
        with recorder.span("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _count_products(self) -> dict[str, Amounts]:
        with ProductCounter() as counter, self._recorder(counter) as recorder:
            with recorder.span(OTHER):
                self._run(recorder)
            return recorder.take()

    def _time_runs(self, repeats: int) -> tuple[list[dict[str, Amounts]], list[Amounts]]:
        """The stages of every run, and the machine's rates before, between and after the runs."""
        is_cuda = self.device.type == "cuda"
        tasks = machine_tasks(self.device, self.dtype)
        runs = []
        with self._recorder(CudaClock() if is_cuda else HostClock()) as recorder:
            rates = [self._machine_rates(recorder, tasks)]
            for _ in range(repeats):
                with recorder.span(OTHER):
                    self._run(recorder)
                runs.append(recorder.take())
                rates.append(self._machine_rates(recorder, tasks))
        return runs, rates

    def _machine_rates(
        self, recorder: StageRecorder, tasks: dict[str, Callable[[], float]]
    ) -> Amounts:
        amounts = {}
        for name, task in tasks.items():
            task()
            with recorder.span(name):
                amounts[name] = sum(task() for _ in range(_TASK_CALLS[self.device.type]))
        seconds = recorder.take()
        return {name: amounts[name] / busy_seconds(seconds[name]) for name in amounts}

    @contextmanager
    def _recorder(self, meter: Meter) -> Iterator[StageRecorder]:
        with StageRecorder(meter) as recorder:
            (watch_compiled if self.compiled else watch_stages)(recorder, self.model)
            yield recorder

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


def watch_stages(recorder: StageRecorder, model: GLIPv2) -> None:
    """Add hooks to every part of the model that its config includes."""
    recorder.watch("preprocess", model, "preprocess_image")
    recorder.watch("text", model, "tokenize")
    recorder.watch("text", model, "language_cache")
    recorder.watch("FPN", model.backbone)
    recorder.watch("backbone", model.backbone.bottom_up)
    for name, part in model.fused_head.named_modules():
        stage = _STAGE_OF_PART.get(name.rpartition(".")[2])
        if stage is not None:
            recorder.watch(stage, part)
    for method in ("label_anchors", "losses", "score_labels", "detect"):
        recorder.watch("post-processing, losses", model.proposal_generator, method)
    recorder.watch("heads", model.proposal_generator, "predict")
    recorder.watch("post-processing, losses", meta_arch, "image_results")
    if model.roi_heads is not None:
        recorder.watch("masks", model.roi_heads, "predict_masks")
        recorder.watch("masks", model.roi_heads, "losses")
        recorder.watch("masks", postprocess, "paste_masks")


def watch_compiled(recorder: StageRecorder, model: GLIPv2) -> None:
    """Add hooks around the compiled parts: hooks inside them would break their graphs."""
    recorder.watch("preprocess", model, "preprocess_image")
    recorder.watch("text", model, "language_cache")
    recorder.watch("backbone, FPN", model.backbone)
    recorder.watch("fused head", model.fused_head)
    for method in ("predict", "label_anchors", "losses", "score_labels", "detect"):
        recorder.watch("heads, post-processing, losses", model.proposal_generator, method)


def compile_parts(model: GLIPv2) -> None:
    """Compile backbone and fused head in place."""
    parts: list[nn.Module] = [model.backbone, model.fused_head]
    for part in parts:
        part.forward = torch.compile(part.forward)
