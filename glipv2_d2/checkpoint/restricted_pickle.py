"""Read pickles of numpy arrays and plain containers, without executing code from them."""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

_NUMBER = re.compile(r"[biufc](1|2|4|8|16)|\?")


class StoredDtype:
    """A dtype in a pickle: its code, such as ``f4``, and its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else str(code)
        order = code[:1] if code[:1] in ("<", ">", "|", "=") else ""
        self.code = code.removeprefix(order)
        self.order = order or "="

    def restore(self, state: Any) -> None:
        """``state``: (version, byte order, ...); the other entries are of structured dtypes."""
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else str(order)

    def numpy(self) -> np.dtype:
        if not _NUMBER.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of dtype {self.order}{self.code[:20]}, which is no number")
        return np.dtype(self.order + self.code)


class StoredArray:
    """An array in a pickle: its dtype, shape and bytes. It is checked before numpy has it."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def restore(self, state: Any) -> None:
        """``state``: (version, shape, dtype, is in Fortran's order, bytes)."""
        self.state = tuple(state)[-4:]

    def tensor(self) -> Tensor:
        """
        Raises:
            ValueError: the bytes are not numbers, or not as many as the shape states.
        """
        if self.state is None:
            raise ValueError("an array without content")
        shape, dtype, is_fortran, content = self.state
        if isinstance(content, str):  # Python 2
            content = content.encode("latin1")
        if not isinstance(content, bytes | bytearray) or not isinstance(dtype, StoredDtype):
            raise ValueError("an array of objects")
        flat = np.frombuffer(content, dtype.numpy())
        array = flat.reshape(tuple(map(int, shape)), order="F" if is_fortran else "C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _scalar(dtype: Any, content: Any) -> StoredArray:
    array = StoredArray()
    array.restore(((), dtype, False, content))
    return array


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> StoredArray:
    array = StoredArray()
    array.restore((shape, dtype, order == "F", content))
    return array


def _latin1(text: str, *_: Any) -> bytes:
    # How Python 3 writes bytes in the older protocols.
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # With an argument, bytes() would reserve any amount of memory.
    return b""


_NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": StoredArray,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
}
_ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": StoredArray,
    "numpy.dtype": StoredDtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
    # numpy 1 and 2.
    **{
        f"numpy.{core}.{name}": value
        for core in ("core", "_core")
        for name, value in _NUMPY.items()
    },
}


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with stand-ins for numpy; every other global is refused.

    The implementation in Python: that in C reserves memory for any position of its memo that the
    file names, and builds arrays from states that it does not check.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ADMITTED:
            raise RefusedGlobal(f"{module}.{name}")
        return _ADMITTED[f"{module}.{name}"]

    def _build(self) -> None:
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        state = stack.pop()
        if isinstance(stack[-1], StoredArray | StoredDtype):
            stack[-1].restore(state)
        elif not isinstance(stack[-1], OrderedDict):  # its attributes are not needed
            raise pickle.UnpicklingError(f"the state of a {type(stack[-1]).__name__}")

    def _bytearray(self) -> None:
        # The size is not trusted: no more is reserved than the file has.
        size = struct.unpack("<Q", self.read(8))[0]  # type: ignore[attr-defined]
        self.append(self.read(size))  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


class _CompleteLines(io.BytesIO):
    """A file that ends within a line is truncated; Python's unpickler would read a shorter name."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise EOFError("the file ends within a line")
        return line


class RefusedGlobal(ValueError):
    """A pickle requests something else than arrays and containers; the message is its name."""


def read_pickle(path: Path) -> Any:
    """The content of a pickle of any protocol, also of Python 2.

    Returns:
        Plain values and containers, with :class:`StoredArray` in place of arrays.

    Raises:
        RefusedGlobal: the file requests a class or a function, which could execute code.
        Exception: the file is not a pickle; unpickling foreign bytes may raise anything.
    """
    return _Unpickler(_CompleteLines(path.read_bytes()), encoding="latin1").load()
