"""Load test of ``glipv2 serve`` with the shipped model, on this machine.

    python tests/product/serve_check.py

Starts the service and sends requests of many clients with different images and class lists. Checks
that every answer is that of the same request sent alone, that an overload is answered at once, and
that a stop finishes what waits. Prints requests per second and response times.
"""

from __future__ import annotations

import argparse
import io
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image
from skimage import data

TIMEOUT = 300.0
MAX_SCORE_DIFFERENCE = 1e-3
CLASS_LISTS = (
    ["cat", "dog", "teapot"],
    ["spoon", "coffee cup", "clock"],
    ["motorcycle", "person"],
    ["rocket", "cat", "helmet", "astronaut", "flag"],
)


@dataclass(frozen=True)
class Call:
    """A request with its fields."""

    path: str
    image: bytes
    fields: dict[str, Any]


@dataclass(frozen=True)
class Response:
    status: int
    content: Any
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="default: %(default)s")
    args = parser.parse_args()
    command = [sys.executable, "-m", "glipv2_cli", "serve", "--port", "0", "--max-waiting", "16"]
    # Of the interpreter: warnings of libraries about each other.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        check(process, args.requests, args.clients)
    finally:
        process.kill()
        process.wait()
    return 0


def check(process: subprocess.Popen[str], num_requests: int, num_clients: int) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    url = next(word for word in line.split() if word.startswith("http://"))
    calls = make_calls()
    with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
        alone = [send(client, call) for call in calls]
        print(f"alone: {summary(alone)}")

        start = time.perf_counter()
        with ThreadPoolExecutor(num_clients) as pool:
            sent = [index % len(calls) for index in range(num_requests)]
            together = list(pool.map(lambda index: send(client, calls[index]), sent))
        rate = num_requests / (time.perf_counter() - start)
        wrong = [
            index
            for index, response in zip(sent, together, strict=True)
            if not is_equal(alone[index].content, response.content)
        ]
        assert not wrong, f"other answers than alone: {[calls[i].fields for i in wrong[:3]]}"
        print(f"{num_clients} clients: {rate:.2f} requests per second, {summary(together)}")

        with ThreadPoolExecutor(60) as pool:
            flood = list(pool.map(lambda _: send(client, calls[0]), range(60)))
        counts = {status: sum(x.status == status for x in flood) for status in (200, 429)}
        assert sum(counts.values()) == len(flood) and counts[429] > 0, counts
        refused = [response.seconds for response in flood if response.status == 429]
        print(f"60 at once: {counts[200]} answered, {counts[429]} refused (429)")
        print(f"  a refusal took {statistics.median(refused):.2f} s (median)")

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(send, client, call) for call in calls[:4]]
            while client.get("/health").json()["waiting"] == 0:
                assert not all(future.done() for future in futures)
            process.send_signal(signal.SIGTERM)
            last = [future.result() for future in futures]
    assert all(response.status == 200 for response in last), last
    code = process.wait(TIMEOUT)
    # uvicorn ends by the signal that it was sent, after the stop.
    assert code in (0, -signal.SIGTERM), code
    print("SIGTERM: the requests that were waiting were answered")


def make_calls() -> list[Call]:
    images = [encode(image) for image in (data.chelsea(), data.coffee(), data.astronaut())]
    calls = [
        Call("/predict", image, {"classes": classes, "threshold": "0.1"})
        for image in images
        for classes in CLASS_LISTS
    ]
    calls += [Call("/answer", image, {"question": "is there a cat?"}) for image in images]
    return calls + [Call("/caption", image, {}) for image in images]


def encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def send(client: httpx.Client, call: Call) -> Response:
    start = time.perf_counter()
    response = client.post(call.path, files={"image": ("photo.jpg", call.image)}, data=call.fields)
    return Response(response.status_code, response.json(), time.perf_counter() - start)


def is_equal(expected: Any, actual: Any) -> bool:
    """Whether two JSON values are equal, numbers up to the rounding of other batches."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            is_equal(expected[key], actual[key]) for key in expected
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(is_equal, expected, actual))
    if isinstance(expected, float) and isinstance(actual, float):
        return abs(expected - actual) <= MAX_SCORE_DIFFERENCE * max(1.0, abs(expected))
    return bool(expected == actual)


def summary(responses: list[Response]) -> str:
    assert all(response.status == 200 for response in responses), responses
    seconds = sorted(response.seconds for response in responses)
    return f"p50 {np.quantile(seconds, 0.5):.2f} s, p95 {np.quantile(seconds, 0.95):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
