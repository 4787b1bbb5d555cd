"""The graph's detections; on the CPU, that its operations can be captured."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.device_stages import autocast, model_on
from helpers.models import random_image, tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glipv2_d2.layers import lru_cache
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.profiling.cuda_graph import (
    GraphedDetector,
    one_query_per_image,
    predict_densely,
)
from glipv2_d2.structures import TextFeatures

NAMES = ["cat", "dog"]
ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 20)


def inputs(seed: int, *sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"image": random_image(*size, seed=seed), "classes": NAMES} for size in sizes]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_graph_gives_the_detections_of_the_model(precision: str) -> None:
    model = tiny_model(*ALL).cuda()
    context = functools.partial(autocast, "cuda", precision)
    graph = GraphedDetector(model, inputs(0, (64, 64), (48, 80)), autocast=context)
    for seed in (1, 2):
        images = inputs(seed, (64, 64), (48, 80))
        with torch.no_grad(), context():
            expected = model(images)
        for x, y in zip(graph(images), expected, strict=True):
            ours, reference = x["instances"], y["instances"]
            assert ours.pred_classes.tolist() == reference.pred_classes.tolist()
            torch.testing.assert_close(ours.scores, reference.scores, atol=1e-4, rtol=0)
            boxes = ours.pred_boxes.tensor, reference.pred_boxes.tensor
            torch.testing.assert_close(*boxes, atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match=r"of images of \[\(64, 64\)"):
        graph(inputs(0, (64, 64), (64, 64)))


class HostTensors(TorchDispatchMode):
    """Operations with tensors of the host, whose copies a capture does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.device.type == "cpu" for x in tensors):
            self.found.append(str(func))
        return out


def replace_tensors(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(convert(parameter), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = convert(buffer)


@torch.no_grad()
def test_the_dense_part_reads_no_values_and_no_tensors_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On fake CUDA tensors, which have no values; reading one raises."""
    monkeypatch.setattr(lru_cache, "stream_id", lambda device: 0)
    model = tiny_model()
    batch = inputs(0, (64, 64), (48, 80))
    queries = one_query_per_image(model, batch)
    tokens, images = model.tokenize(queries), model.preprocess_image(batch)
    text = model.encode_text(tokens)
    fake_model: GLIPv2 = copy.deepcopy(model)
    with FakeTensorMode() as mode:

        def convert(tensor: Tensor) -> Tensor:
            return mode.from_tensor(tensor).to("cuda")

        replace_tensors(fake_model, convert)
        arguments = (
            *(convert(images.tensor), images.image_sizes, queries, tokens),
            TextFeatures(convert(text.hidden), convert(text.mask)),
        )
        # The first run fills the caches, as the runs before a capture do.
        predict_densely(fake_model, *arguments)
        with HostTensors() as host:
            _, predictions = predict_densely(fake_model, *arguments)
    assert {x.device.type for x in predictions.token_logits_per_level} == {"cuda"}
    assert not host.found


def test_a_model_on_the_cpu_has_no_graph() -> None:
    with pytest.raises(ValueError, match="needs a model on a CUDA device, not cpu"):
        GraphedDetector(model_on("cpu"), inputs(0, (64, 64)))


def test_an_image_with_several_prompts_has_no_graph() -> None:
    model = tiny_model("MODEL.PROMPT.MAX_CLASSES", 1)
    with pytest.raises(ValueError, match="1 images have 2 prompts"):
        one_query_per_image(model, inputs(0, (64, 64)))
