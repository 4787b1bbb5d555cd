"""A memory of limited size that several threads may use at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def stream_id(device: torch.device) -> int:
    """The queue of a device in which this thread works; 0 where there is but one.

    What one CUDA stream computed is not there yet for another, so keys of what is kept on a device
    tell them apart.
    """
    return torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0


class LRUCache(Generic[K, V]):
    """Keeps the values used last, as long as what they depend on stays the same.

    Values are shared between callers, which must not write into them. While a caller computes what
    is missing nobody waits: two threads that miss the same value both compute it, and the later one
    stays. A copy, also a pickled one, starts empty.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: values to keep, the least recently used goes first.
        """
        self.size = size
        self._version: Hashable = None
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["size"])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()

    def find(self, keys: Iterable[K], version: Hashable = None) -> dict[K, V]:
        """The values that are known of some keys.

        Args:
            version: what the values depend on besides the key; another one than last time empties
                the cache.
        """
        with self._lock:
            self._follow(version)
            found = {}
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
                    found[key] = self._values[key]
            return found

    def keep(self, values: Mapping[K, V], version: Hashable = None) -> None:
        """Remember values that were computed for ``version``, unless another one came meanwhile."""
        with self._lock:
            if version != self._version:
                return
            for key, value in values.items():
                self._values[key] = value
                self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)

    def tensor(
        self: LRUCache[Hashable, Tensor],
        key: Hashable,
        device: torch.device,
        compute: Callable[[], Tensor],
    ) -> Tensor:
        """A tensor that depends on its key and device alone, computed where it is not known."""
        # A compiler computes it once for each of its shapes.
        if torch.compiler.is_compiling():
            return compute()
        key = (key, device, stream_id(device))
        known = self.find([key])
        if not known:
            # Tensors made in inference mode could not be used in a later training step.
            with torch.inference_mode(mode=False):
                known[key] = compute()
            # A tracer's stand-ins (FakeTensor) are no numbers for others.
            if type(known[key]) is Tensor:
                self.keep(known)
        return known[key]

    def _follow(self, version: Hashable) -> None:
        if version != self._version:
            self._values.clear()
            self._version = version
