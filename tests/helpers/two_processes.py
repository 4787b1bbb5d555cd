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


def train_step(inputs: Sequence[dict[str, Any]]) -> Step:
    """Losses and gradients in float64, averaged over the processes where there are several."""
    model = tiny_model(*ALL_LOSSES, *DETERMINISTIC).double().train()
    model.language_backbone.eval()  # BERT's dropout
    model.loss_heads["masked_language"].masker = mask_every_third_word
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    losses = wrapped(inputs)
    sum(losses.values()).backward()
    losses = {name: loss.detach() for name, loss in losses.items()}
    if dist.is_initialized():
        for loss in losses.values():
            dist.all_reduce(loss.div_(dist.get_world_size()))
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": losses, "gradients": gradients}


def run_process(rank: int, folder: str) -> None:
    """Run one of two processes; the first one saves the steps of all batches."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    steps = {
        name: train_step(inputs[2 * rank : 2 * rank + 2]) for name, inputs in batches().items()
    }
    if rank == 0:
        torch.save(steps, Path(folder) / "steps.pth")
    dist.destroy_process_group()
