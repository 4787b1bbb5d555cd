"""One training step of the tiny model on four images, in one process or shared by two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.masks import MASKS, masked_input
from helpers.models import tiny_model, training_input
from helpers.text_tasks import TEXT_TASKS, caption_input, grounded_question_input, question_input
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

ALL_LOSSES = ("MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0, *MASKS, *TEXT_TASKS)
DETERMINISTIC = (
    *("MODEL.FUSED_HEAD.FUSION_DROPOUT", 0.0, "MODEL.FUSED_HEAD.LANGUAGE_DROPOUT", 0.0),
    *("MODEL.FPN.DROP_BLOCK_PROB", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0),
)
MASK = 103
RELATIVE = 1e-5
# Of the gradient norm of the same layer's key.weight.
KEY_BIAS_RELATIVE = 1e-7

Step = dict[str, dict[str, Tensor]]
""""losses" and "gradients" by name."""


def batches() -> dict[str, list[dict[str, Any]]]:
    """Four images each; the second process gets the last two."""
    shapes = [[5.0, 5, 50, 5, 50, 60], [20.0, 10, 40, 10, 20, 30]]
    text = {"question": "is it red?", "answers": {"yes": 0.6}, "target_captions": ["two cats"]}
    detection = masked_input(shapes, [0, 2], classes=["cat", "traffic light", "dog"], **text)
    # Without masks.
    caption = training_input(
        [[8, 20, 60, 60]], [0], caption="a dog on a mat", phrases=[[[0, 5]], [[9, 14]]]
    )
    # Class names of the first image, one of them as a negative.
    same_names = masked_input(
        [[10.0, 2, 58, 2, 10, 40]], [1], classes=["Traffic_Light", "dog", "red car", "person"]
    )
    empty = training_input([], [], classes=["dog", "cow"])
    return {
        "all kinds": [detection, caption, same_names, empty],
        "no ground truth in the second process": [detection, same_names, empty, empty],
        "text only in the second process": [
            *(detection, grounded_question_input()),
            *(question_input(answers={"no": 1.0}), caption_input()),
        ],
    }


def mask_every_third_word(input_ids: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor]:
    is_chosen = is_word & (torch.arange(input_ids.shape[1]) % 3 == 1)
    return input_ids.masked_fill(is_chosen, MASK), is_chosen


def train_step(inputs: Sequence[dict[str, Any]], device: str = "cpu") -> Step:
    """Losses and gradients in float64, averaged over the processes where there are several."""
    model = tiny_model(*ALL_LOSSES, *DETERMINISTIC).double().to(device).train()
    model.language_backbone.eval()  # BERT's dropout
    model.loss_heads["masked_language"].masker = mask_every_third_word
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    losses = wrapped(inputs)
    sum(losses.values()).backward()
    losses = {name: loss.detach() for name, loss in losses.items()}
    if dist.is_initialized():
        for loss in losses.values():
            dist.all_reduce(loss.div_(dist.get_world_size()))
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
    return {"losses": {name: x.cpu() for name, x in losses.items()}, "gradients": gradients}


def run_process(
    rank: int, folder: str, backend: str = "gloo", num_processes: int = 2, num_batches: int = 3
) -> None:
    """Run one of the processes; the first one saves the steps of the batches.

    Args:
        backend: "gloo" on the CPU, or "nccl" with a GPU per process.
    """
    torch.set_num_threads(1)
    device = "cpu"
    if backend == "nccl":
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=num_processes
    )
    share = 4 // num_processes
    steps = {
        name: train_step(inputs[share * rank : share * (rank + 1)], device)
        for name, inputs in list(batches().items())[:num_batches]
    }
    if rank == 0:
        torch.save(steps, Path(folder) / "steps.pth")
    dist.destroy_process_group()


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        difference = (ours[name] - gradient).norm()
        tolerance = RELATIVE * gradient.norm() + 1e-12
        if name.endswith(".key.bias"):
            # 0 by algebra: a softmax is invariant to a shift of all its logits.
            weight = expected[name.removesuffix("bias") + "weight"]
            tolerance += KEY_BIAS_RELATIVE * weight.norm()
        assert difference <= tolerance, name
