"""What a recorded graph needs: plain tensor operations, and no constants of its first image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.utils import _python_dispatch

# Before torch 2.7 an export is a compilation.
is_exporting: Callable[[], bool] = getattr(
    torch.compiler, "is_exporting", torch.compiler.is_compiling
)
"""Whether torch.export records this call."""

_computes_as_recorded = ContextVar("_computes_as_recorded", default=False)


def is_tracing() -> bool:
    """Whether torch.jit.trace (also a FLOP counter) or torch.export records this call.

    Fast forms that work in blocks, in place, by cached values or in integers then give way to plain
    ones.
    """
    return torch.jit.is_tracing() or is_exporting() or _computes_as_recorded.get()


@contextmanager
def computed_as_recorded() -> Iterator[None]:
    """Compute with the operations that a recorded graph has, to compare the two."""
    token = _computes_as_recorded.set(True)
    try:
        yield
    finally:
        _computes_as_recorded.reset(token)


def is_exporting_onnx() -> bool:
    """Whether torch.onnx.export records this call; then :func:`is_tracing`, too."""
    return torch.onnx.is_in_onnx_export()


def fixed(size: int) -> int:
    """A size as a number in torch.onnx.export, whose graphs are for one size.

    There and in torch.jit.trace a size is a tensor; a graph that computes it is wrong for ONNX.
    """
    return int(size) if is_exporting_onnx() else size


@contextmanager
def constants_of_export() -> Iterator[None]:
    """Compute tensors for real while torch.export records: they are constants of its graph.

    For what depends on words only, such as numbers of tokens. Weights have no values then.
    """
    if is_exporting():
        with _python_dispatch._disable_current_modes():
            yield
    else:
        yield


def fix_size(image: Tensor) -> tuple[Tensor, int, int]:
    """The image (C, H, W) with its height and width as numbers, which a traced graph checks.

    torch.jit.trace records numbers as constants: without the check, the graph would be wrong on
    images of another size. torch.export checks the sizes of inputs itself.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    if torch.jit.is_tracing():
        image = _check_size(image, height, width)
    return image, height, width


@torch.jit.script_if_tracing
def _check_size(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2] != height or image.shape[-1] != width:
        raise RuntimeError(
            f"this model was traced with images of {height} x {width} pixels (height x width), but "
            f"this one has {image.shape[-2]} x {image.shape[-1]}: resize it, or trace for its size"
        )
    return image


def boxes_of(corners: Tensor) -> Boxes:
    """Detectron2's Boxes of (K, 4), also where torch.export does not know K.

    Their constructor branches on the number.
    """
    boxes = Boxes(corners.new_empty(0, 4))
    boxes.tensor = corners
    return boxes
