"""A thread-safe least-recently-used cache."""

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
    """The id of the current CUDA stream of this thread; 0 for other devices.

    Results of one stream may not be ready for another, so cache keys of CUDA tensors include it.
    """
    return torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0


class LRUCache(Generic[K, V]):
    """Keeps the most recently used values of one version.

    Values are shared between callers, which must not modify them. No lock is held while a caller
    computes a missing value: two threads that miss the same value both compute it, and the later
    result stays. A copy, including an unpickled one, starts empty.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: maximum number of values; the least recently used is evicted first.
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
        """Return the cached values of some keys.

        Args:
            version: what all values depend on besides their keys, such as a counter of weight
                updates. A change empties the cache.
        """
        with self._lock:
            self._set_version(version)
            found = {}
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
                    found[key] = self._values[key]
            return found

    def keep(self, values: Mapping[K, V], version: Hashable = None) -> None:
        """Store values computed for ``version``, unless the version has changed since."""
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
        """Return the tensor of a key on a device, computed if it is not cached."""
        # A compiled graph computes it once per input shape.
        if torch.compiler.is_compiling():
            return compute()
        key = (key, device, stream_id(device))
        cached = self.find([key])
        if not cached:
            # Tensors created in inference mode cannot be used in a later training step.
            with torch.inference_mode(mode=False):
                cached[key] = compute()
            # Fake tensors of a tracer must not be stored.
            if type(cached[key]) is Tensor:
                self.keep(cached)
        return cached[key]

    def _set_version(self, version: Hashable) -> None:
        if version != self._version:
            self._values.clear()
            self._version = version
