"""Connecting to a Ray cluster, and the errors of actors, with a module in place of Ray."""

from __future__ import annotations

import socket
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from glipv2_d2.engine import ray_pipeline
from glipv2_d2.engine.ray_actors import RayActors, check_address, connect
from glipv2_d2.engine.ray_pipeline import MAX_ATTEMPTS


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a cluster with a node of two CPUs; ``calls`` are those of init and shutdown."""
    module = ModuleType("ray")
    module.data = ModuleType("ray.data")  # type: ignore[attr-defined]
    module.calls = calls = []  # type: ignore[attr-defined]
    module.init = lambda **options: calls.append(options["address"])  # type: ignore[attr-defined]
    module.shutdown = lambda: calls.append("shutdown")  # type: ignore[attr-defined]
    node = {"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9}}
    module.nodes = lambda: [node]  # type: ignore[attr-defined]
    module.get = lambda result: result  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "ray.data", module.data)  # type: ignore[attr-defined]
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL"):
        # Removed after the test.
        monkeypatch.setenv(name, "")
    return module


def connect_one(address: str, **options: Any) -> RayActors:
    with connect(address, **{"num_actors": 1, "num_cpus": 1, "num_gpus": None, **options}) as one:
        return one


@pytest.mark.parametrize(
    "address", ["local", "auto", "127.0.0.1:6379", "ray://head.example:10001", "[::1]:6379"]
)
def test_addresses_of_ray_are_valid(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    "address", ["", "head", "head:", ":6379", "head:port", "http://head:80", "ray://head", "a b:1"]
)
def test_other_addresses_are_errors(address: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a Ray cluster"):
        check_address(address)


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_closed_port_is_an_error_that_ray_is_not_needed_for(prefix: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"{prefix}127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
            connect_one(address)


def test_a_port_out_of_range_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="no Ray cluster answers"):
        connect_one("127.0.0.1:99999")


def test_missing_ray_is_an_error_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glipv2_d2\[ray\]'"):
        connect_one("auto")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Could not find any running Ray instance. Please"), "Could not find any"),
        (RuntimeError("AuthenticationError: InvalidAuthToken\nmore"), "RAY_AUTH_MODE=token"),
        (SystemExit(15), "the address that `ray start` prints"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    ray: Any, error: BaseException, message: str
) -> None:
    def fail(**_options: Any) -> None:
        raise error

    ray.init = fail
    with pytest.raises(ConnectionError, match=message) as raised:
        connect_one("auto")
    assert "\n" not in str(raised.value)


def test_actors_have_no_gpu_where_the_cluster_has_none(ray: Any) -> None:
    assert connect_one("auto").num_gpus == 0
    assert ray.calls == ["auto", "shutdown"]


def test_actors_have_a_gpu_where_the_cluster_has_some(ray: Any) -> None:
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 2}}]
    assert connect_one("auto").num_gpus == 1


def test_an_actor_that_fits_on_no_node_is_an_error(ray: Any) -> None:
    with pytest.raises(ValueError, match="1 CPUs and 1 GPUs fits on no node .* 2 CPUs and 0 GPUs"):
        connect_one("auto", num_gpus=1)
    assert ray.calls == ["auto", "shutdown"]


def test_actors_that_wait_for_room_are_a_warning(
    ray: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert connect_one("auto", num_actors=8).num_actors == 8
    assert "has room for 2 of 8 actors" in caplog.text


def counting_attempts() -> Any:
    attempts = ray_pipeline.Attempts()
    return SimpleNamespace(begin=SimpleNamespace(remote=attempts.begin))


class OfOneProcess(RayActors):
    """Actors whose place one object of this process takes."""

    def _start(self, build: Any, rows: list[bytes]) -> Any:
        actor = ray_pipeline.Actor(build, counting_attempts())
        blocks = iter([actor({"item": [row]})["result"] for row in [*rows, rows[0]]])
        return lambda: next(blocks, None)


def test_a_repeated_block_gives_one_result(ray: Any) -> None:
    actors = OfOneProcess(1, 1, 0)
    assert list(actors.map(lambda: lambda item: 2 * item, [1, 2, 3])) == [(0, 2), (1, 4), (2, 6)]


@pytest.mark.parametrize(
    ("error", "message"),
    [(ValueError("no such file"), "no such file"), (RuntimeError("CUDA"), "RuntimeError: CUDA")],
)
def test_an_error_of_the_model_ends_the_run(ray: Any, error: Exception, message: str) -> None:
    def build() -> Any:
        raise error

    with pytest.raises(ValueError, match=f"^{message}$"):
        list(OfOneProcess(1, 1, 0).map(build, [1]))


def test_a_batch_that_ended_its_actor_each_time_is_given_up(ray: Any) -> None:
    calls: list[int] = []
    actor = ray_pipeline.Actor(lambda: calls.append, counting_attempts())
    results = [actor._result(0, "batch")[1] for _ in range(MAX_ATTEMPTS + 1)]
    assert len(calls) == MAX_ATTEMPTS
    assert isinstance(results[-1], ray_pipeline.Lost)


def test_an_error_of_ray_is_one_line(ray: Any) -> None:
    class Failing(RayActors):
        def _start(self, build: Any, rows: list[bytes]) -> Any:
            raise RuntimeError("the actor died:\n  No module named 'glipv2_d2'\n")

    message = r"Ray ended the run \(RuntimeError: No module named 'glipv2_d2'\)"
    with pytest.raises(ChildProcessError, match=message):
        list(Failing(1, 1, 0).map(lambda: abs, [1]))
