"""Every stage of the data path on a device and in a precision, from the CPU's inputs in fp32.

A stage gets the outputs that the stages before it have on the CPU, so that a difference is its own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.masks import MASKS, masked_input
from helpers.models import random_image, tiny_model, training_input
from helpers.text_tasks import TEXT_TASKS, caption_input, question_input
from helpers.two_processes import DETERMINISTIC
from torch import Tensor

from glipv2_d2.engine.precision import PRECISIONS
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.postprocess import DetectionsPerImage
from glipv2_d2.structures import DensePredictions, FusedFeatures

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""The dry run on the CPU tests the functions and the tolerances of half precision."""

# Norm of the difference to fp32 on the CPU, relative to the norm.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
# fp32: atomic additions on a GPU have no fixed order.
GRADIENT_TOLERANCES = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 0.2}

NAMES = ["cat", "traffic light", "dog"]
# Every candidate passes: random weights give detections to compare.
_DETECTIONS = (*("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 20),)


@dataclass(frozen=True)
class State:
    """What flows between the stages for two images of different sizes."""

    inputs: list[dict[str, Any]]
    images: Tensor
    fused: FusedFeatures
    predictions: DensePredictions
    detections: list[DetectionsPerImage]


Stage = Callable[[GLIPv2, State], Sequence[Tensor]]


@functools.cache
def model_on(device: str) -> GLIPv2:
    """The tiny model for detection with masks, answers and captions; tests must not change it."""
    if device == "cpu":
        return tiny_model(*MASKS, *TEXT_TASKS, *DETERMINISTIC, *_DETECTIONS)
    return copy.deepcopy(model_on("cpu")).to(device)


@functools.cache
def cpu_state() -> State:
    model = model_on("cpu")
    inputs = [
        {"image": random_image(), "classes": NAMES},
        {"image": random_image(48, 80, seed=1), "classes": NAMES[1:]},
    ]
    with torch.no_grad():
        queries = model.query_builder.localized_queries(inputs, [{}, {}])
        images = model.preprocess_image(inputs).tensor
        fused = model.fuse_queries(model.encode_images(inputs), queries)
        head = model.proposal_generator
        predictions = head.predict(fused)
        detections = head.detect(head.score_labels(predictions, fused), fused)
    return State(inputs, images, fused, predictions, detections)


def move(value: Any, device: str) -> Any:
    """``value`` with all tensors in its lists, dicts and dataclasses on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(move(item, device) for item in value)
    if dataclasses.is_dataclass(value):
        names = [x.name for x in dataclasses.fields(value) if x.init]
        return dataclasses.replace(value, **{x: move(getattr(value, x), device) for x in names})
    return value


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device, dtype=PRECISIONS[precision])


def run_stage(name: str, device: str, precision: str) -> list[Tensor]:
    """The outputs of a stage, in fp32 on the CPU."""
    model, state = model_on(device), move(cpu_state(), device)
    with torch.no_grad(), autocast(device, precision):
        return [x.float().cpu() for x in STAGES[name](model, state)]


def _levels(state: State) -> list[Tensor]:
    return list(state.fused.features.values())


def _language(model: GLIPv2, state: State) -> list[Tensor]:
    # Rows of padding are undefined.
    return [model.language_backbone(state.fused.tokens).hidden[state.fused.tokens.mask]]


def _fusion(model: GLIPv2, state: State) -> list[Tensor]:
    levels, text = model.fused_head.blocks[0].fusion(_levels(state), state.fused.text)
    return [*levels, text.hidden[text.mask]]


def _language_layer(model: GLIPv2, state: State) -> list[Tensor]:
    text = model.fused_head.blocks[0].language_layer(state.fused.text)
    return [text.hidden[text.mask]]


def _head(model: GLIPv2, state: State) -> list[Tensor]:
    found = model.proposal_generator.predict(state.fused)
    mask = state.fused.tokens.mask[:, None]
    logits = [x.masked_fill(~mask, 0) for x in found.token_logits_per_level]
    return [*logits, *found.box_deltas_per_level, *found.centerness_per_level]


def _postprocess(model: GLIPv2, state: State) -> list[Tensor]:
    head = model.proposal_generator
    found = head.detect(head.score_labels(state.predictions, state.fused), state.fused)
    return [tensor for x in found for tensor in (x.boxes, x.scores, x.labels)]


def _masks(model: GLIPv2, state: State) -> list[Tensor]:
    found = model.roi_heads.predict_masks(state.fused, state.detections)
    return [x.masks for x in found]


STAGES: dict[str, Stage] = {
    "preprocess": lambda model, state: [model.preprocess_image(state.inputs).tensor],
    "Swin": lambda model, state: list(model.backbone.bottom_up(state.images).values()),
    "Swin and FPN": lambda model, state: list(model.backbone(state.images).values()),
    "language backbone": _language,
    "fusion": _fusion,
    "language layer": _language_layer,
    "DyConv": lambda model, state: model.fused_head.blocks[0].dynamic_conv(_levels(state)),
    "head": _head,
    "post-processing": _postprocess,
    "masks": _masks,
}


def training_inputs() -> dict[str, list[dict[str, Any]]]:
    """Batches of one kind each."""
    boxes = [[5, 5, 50, 60], [10, 8, 40, 30]]
    triangles = [[5.0, 5, 50, 5, 50, 60], [20.0, 10, 40, 10, 20, 30]]
    caption = {"caption": "a dog on a mat", "phrases": [[[0, 5]], [[9, 14]]]}
    return {
        "detection": [training_input(boxes, [0, 2], classes=NAMES)],
        "grounding": [training_input(boxes, [0, 1], **caption)],
        "masks": [masked_input(triangles, [0, 2], classes=NAMES)],
        "answers and captions": [question_input(), caption_input()],
    }


@functools.cache
def train_step_on(device: str, precision: str, kind: str) -> tuple[dict[str, float], Tensor]:
    """The losses of one kind by name, and all gradients in one vector on the CPU."""
    masks = MASKS if kind == "masks" else ()
    tasks = TEXT_TASKS if kind == "answers and captions" else ()
    model = tiny_model(*masks, *tasks, *DETERMINISTIC).to(device).train()
    model.language_backbone.eval()  # BERT's dropout
    with autocast(device, precision):
        losses = model(training_inputs()[kind])
    sum(losses.values()).backward()
    gradients = [x.grad.float().flatten() for x in model.parameters() if x.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, torch.cat(gradients).cpu()


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference relative to the norm; inf for other shapes, inf or nan."""
    if ours.shape != reference.shape or not ours.isfinite().all():
        return float("inf")
    return ((ours - reference).norm() / reference.norm().clamp(min=1e-12)).item()
