"""Whether the current call records a graph, which must be plain tensor operations."""

from __future__ import annotations

import torch


def is_tracing() -> bool:
    """Whether torch.jit.trace (also a FLOP counter) or torch.export records this call.

    Fast forms that work in blocks, in place or by cached values then give way to plain ones.
    """
    return torch.jit.is_tracing() or torch.compiler.is_exporting()
