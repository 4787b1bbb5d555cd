"""Grounding DINO tiny of transformers with random weights, as a reference for timings."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

from glipv2_d2.structures import fields
from glipv2_d2.text.tokenizer import Tokenizer

MAX_TOKENS = 256
_NUM_SPECIAL_TOKENS = 2


class GroundingDino:
    """Runs Grounding DINO on input dicts of this project, one forward pass per prompt.

    Attributes:
        prompts: token ids (1, T) of each prompt.
    """

    def __init__(self, class_names: Sequence[str], device: torch.device) -> None:
        self.device = device
        self.model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().to(device)
        tokenizer = Tokenizer(max_tokens=MAX_TOKENS)
        self.prompts = [
            prompt_token_ids(prompt, tokenizer) for prompt in make_prompts(class_names, tokenizer)
        ]

    def __call__(self, inputs: Sequence[dict[str, Any]]) -> None:
        """Compute boxes and token scores of a batch of images of one size."""
        images = torch.stack([x[fields.IMAGE] for x in inputs]).to(self.device)
        pixels = images.float().sub(128).div(64)
        for ids in self.prompts:
            self.model(pixel_values=pixels, input_ids=ids.expand(len(inputs), -1).to(self.device))


def make_prompts(class_names: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Join class names as "a cat. a dog." into the fewest prompts of at most 256 tokens."""
    prompts = [""]
    for name in class_names:
        longer = f"{prompts[-1]} {name}.".strip()
        if prompts[-1] and tokenizer.count(longer) + _NUM_SPECIAL_TOKENS > MAX_TOKENS:
            prompts.append(f"{name}.")
        else:
            prompts[-1] = longer
    return prompts


def prompt_token_ids(prompt: str, tokenizer: Tokenizer) -> torch.Tensor:
    """(1, T), with the special tokens at both ends."""
    (pieces,) = tokenizer.encode([prompt])
    return torch.tensor([[tokenizer.begin_id, *pieces, tokenizer.end_id]])


def time_in_turns(
    runs: dict[str, Callable[[], object]],
    device: torch.device,
    turns: Iterable[int],
    *,
    warmup: int,
) -> dict[str, list[float]]:
    """Time several functions alternately, so that other load on the machine affects all of them.

    Args:
        turns: the indices of the turns, possibly with a progress bar.
        warmup: turns that are not counted.

    Returns:
        For each function the seconds of every counted turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in turns:
        for name, run in runs.items():
            elapsed = _seconds(run, device)
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """Median and median absolute deviation.

    >>> median_and_spread([1.0, 2.0, 5.0])
    (2.0, 1.0)
    """
    median = statistics.median(samples)
    return median, statistics.median(abs(x - median) for x in samples)
