"""The cost of each stage of a model, and its lower bound on the machine.

A *stage* is a named part of a run. Stages may be nested; a stage is charged for its own share,
without the stages inside it.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from glipv2_d2.layers.packed_linear import prepared_linear

Amounts = dict[str, float]
"""Quantities by name, such as ``{"wall_s": 0.1, "cpu_s": 0.2}``."""


class Meter(Protocol):
    """A monotonic counter that is read when a stage starts and ends."""

    def read(self) -> Any: ...

    def between(self, start: Any, end: Any) -> Amounts:
        """The difference between two readings; called after the run only."""


class HostClock:
    """Wall-clock seconds, and CPU seconds of all threads of this process.

    On a shared machine CPU seconds measure the work better.
    """

    def read(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def between(self, start: tuple[float, float], end: tuple[float, float]) -> Amounts:
        return {"wall_s": end[0] - start[0], "cpu_s": end[1] - start[1]}


class CudaClock:
    """Seconds of the current CUDA stream, without synchronisation during the run."""

    def read(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> Amounts:
        end.synchronize()
        return {"wall_s": start.elapsed_time(end) / 1000}


_DEFORMABLE = "torchvision.deform_conv2d"
_INTEGER_CONVOLUTION = "onednn.qconv2d_pointwise"
_PACKED_LINEAR = "mkldnn._linear_pointwise"


def _deformable_flops(image: Tensor, weight: Tensor, *args: Any, out_val: Tensor) -> float:  # noqa: ARG001
    """FLOPs of the matrix product only; torch's registry has no formula for the operation."""
    return 2.0 * out_val.numel() * weight[0].numel()


def _integer_convolution_flops(
    image: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    zero_point: int,  # noqa: ARG001
    weight: Tensor,
    *args: Any,  # noqa: ARG001
    out_val: Tensor,
) -> float:
    """As many as of the same convolution in floats."""
    return 2.0 * out_val.numel() * math.prod(weight.shape[1:])


def _packed_linear_flops(x: Tensor, weight: Tensor, *args: Any, out_val: Tensor) -> float:  # noqa: ARG001
    return 2.0 * out_val.numel() * weight.shape[1]


# Operation name -> FLOP formula. In-place operations have a trailing "_".
_FORMULAS = {str(packet): formula for packet, formula in flop_registry.items()} | {
    _DEFORMABLE: _deformable_flops,
    _INTEGER_CONVOLUTION: _integer_convolution_flops,
    _PACKED_LINEAR: _packed_linear_flops,
}


class ProductCounter(TorchDispatchMode):
    """Counts the FLOPs and bytes of matrix products and convolutions.

    Bytes are those of all operands and results, once per product. Other operations are not
    counted: the result is the minimal work of a stage with its sequence of products.
    """

    def __init__(self) -> None:
        super().__init__()
        self._amounts = {"product_flops": 0.0, "convolution_flops": 0.0, "bytes": 0.0}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = str(func._overloadpacket)
        formula = _FORMULAS.get(name.removesuffix("_"))
        if formula is not None:
            # A deformable convolution is a product of gathered samples.
            kind = "convolution" if "conv" in name and name != _DEFORMABLE else "product"
            self._amounts[f"{kind}_flops"] += formula(*args, **kwargs, out_val=out)
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self._amounts["bytes"] += sum(x.numel() * x.element_size() for x in tensors)
        return out

    def read(self) -> Amounts:
        return dict(self._amounts)

    def between(self, start: Amounts, end: Amounts) -> Amounts:
        return {name: end[name] - start[name] for name in start}


@dataclass(eq=False)
class _Span:
    stage: str
    parent: _Span | None
    start: Any
    is_atomic: bool
    end: Any = None


class StageRecorder:
    """Reads a meter when stages start and end. A context manager, which removes all hooks."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._spans: list[_Span] = []
        self._open: _Span | None = None
        self._watched: list[tuple[Any, str, Callable[..., Any] | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for owner, method, previous in reversed(self._watched):
            if previous is None:
                delattr(owner, method)
            else:
                setattr(owner, method, previous)
        self._watched.clear()

    def watch(self, stage: str, owner: object, method: str = "forward") -> None:
        """Charge every call of ``owner.method`` to a stage.

        Args:
            owner: a module, or any object with the method.
        """
        original = getattr(owner, method)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._open is not None and self._open.is_atomic:
                return original(*args, **kwargs)
            with self.span(stage):
                return original(*args, **kwargs)

        self._watched.append((owner, method, vars(owner).get(method)))
        setattr(owner, method, watched)

    @contextmanager
    def span(self, stage: str, *, atomic: bool = False) -> Iterator[None]:
        """Charge the block to a stage.

        Args:
            atomic: watched calls inside the block are charged to this stage, not to their own.
        """
        span = _Span(stage, self._open, self.meter.read(), is_atomic=atomic)
        self._spans.append(span)
        self._open = span
        try:
            yield
        finally:
            span.end = self.meter.read()
            self._open = span.parent

    def take(self) -> dict[str, Amounts]:
        """Amounts per stage since the last call, without nested stages, in order of first entry."""
        shares: dict[str, Amounts] = {}
        for span in self._spans:
            amounts = self.meter.between(span.start, span.end)
            _add(shares.setdefault(span.stage, {}), amounts, 1)
            if span.parent is not None:
                _add(shares[span.parent.stage], amounts, -1)
        self._spans.clear()
        return shares


def _add(total: Amounts, amounts: Amounts, sign: int) -> None:
    for name, value in amounts.items():
        total[name] = total.get(name, 0.0) + sign * value


def machine_tasks(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], float]]:
    """Benchmark kernels, to measure the rates of the machine; each returns its amount of work.

    ``product`` and ``convolution`` return FLOPs, ``copy`` the bytes read and written. The sizes are
    those of a DyConv on the finest level of an 800 x 1333 image, so that a model can reach the
    rates.
    """
    rows, depth, channels, height, width = 4096, 2304, 256, 100, 168
    a = torch.randn(rows, depth, device=device, dtype=dtype)
    with torch.no_grad():
        weight = torch.randn(channels, depth, device=device, dtype=dtype)
        multiply = prepared_linear(weight, None, num_rows=rows, block_rows=rows)
    image = torch.randn(1, channels, height, width, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    kernel = kernel.to(memory_format=torch.channels_last)
    source = torch.zeros(32 * 2**20, device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)

    def product() -> float:
        multiply(a)
        return 2.0 * rows * depth * channels

    def convolution() -> float:
        F.conv2d(image, kernel, padding=1)
        return 2.0 * height * width * depth * channels

    def copy() -> float:
        target.copy_(source)
        return 2.0 * source.numel()

    return {"product": product, "convolution": convolution, "copy": copy}


def floor_seconds(amounts: Amounts, rates: Amounts) -> float:
    """Lower bound of a stage's time: its products, convolutions and bytes at the machine's rates.

    Args:
        amounts: of a :class:`ProductCounter`.
        rates: amount per second, with the names of :func:`machine_tasks`.
    """
    return (
        amounts["product_flops"] / rates["product"]
        + amounts["convolution_flops"] / rates["convolution"]
        + amounts["bytes"] / rates["copy"]
    )
