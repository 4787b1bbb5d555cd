"""Optimizer steps on a model with one weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage
from helpers.models import tiny_model
from helpers.two_processes import ALL_LOSSES, DETERMINISTIC, mask_every_third_word
from helpers.two_processes import batches as glipv2_batches
from torch import Tensor, nn

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.engine.train.param_groups import with_gradient_clipping
from glipv2_d2.engine.train.train_step import (
    MAX_SKIPS_IN_A_ROW,
    AccumulatingTrainer,
    build_accumulating_trainer,
    images_per_micro_batch,
)

NAN, INF = float("nan"), float("inf")


class OneWeight(nn.Module):
    """The loss is the weight times the mean of the inputs; ``dtypes`` records the products'."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)
        self.dtypes: list[torch.dtype] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        product = self.layer(torch.tensor([[x["value"]] for x in batch]))
        self.dtypes.append(product.dtype)
        return {"loss_a": product.float().mean(), "loss_b": 0 * product.float().sum()}


def batches(*values: float) -> list[list[dict[str, Any]]]:
    """One image per batch; the first is "0.png"."""
    return [[{"value": value, "file_name": f"{i}.png"}] for i, value in enumerate(values)]


class Run:
    """Steps of SGD with rate 1: a step subtracts the gradient from the weight."""

    def __init__(self, *values: float, **options: Any) -> None:
        self.model = OneWeight()
        optimizer = with_gradient_clipping(torch.optim.SGD, 1.0, 2.0)(
            self.model.parameters(), lr=1.0
        )
        self.trainer = AccumulatingTrainer(
            model=self.model, data_loader=batches(*values), optimizer=optimizer, **options
        )

    def step(self) -> dict[str, float]:
        """The metrics of one step."""
        with EventStorage(self.trainer.iter) as storage:
            self.trainer.run_step()
        self.trainer.iter += 1
        return {name: value for name, (value, _) in storage.latest().items()}

    @property
    def weight(self) -> float:
        return self.model.layer.weight.item()


def cfg_with(**solver: Any) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def test_a_step_uses_the_mean_gradient_of_its_micro_batches() -> None:
    run = Run(0.25, 0.75, 5.0, accumulation_steps=2)
    run.step()
    assert run.weight == 0.5


def test_the_losses_in_the_metrics_are_means_over_micro_batches() -> None:
    metrics = Run(0.25, 0.75, accumulation_steps=2).step()
    assert (metrics["loss_a"], metrics["total_loss"]) == (0.5, 0.5)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_non_finite_loss_is_an_error_with_its_name_and_images(
    value: float,
) -> None:
    run = Run(0.25, value, accumulation_steps=2)
    with pytest.raises(FloatingPointError, match=rf"loss_a is {value}.*1\.png") as caught:
        run.step()
    assert "0.png" not in str(caught.value)
    assert run.weight == 1


def test_a_non_finite_gradient_is_an_error_with_the_images() -> None:
    run = Run(0.25)
    run.model.layer.weight.register_hook(lambda gradient: gradient * NAN)
    with pytest.raises(FloatingPointError, match=r"gradient.*0\.png"):
        run.step()
    assert run.weight == 1


def test_a_step_with_a_non_finite_loss_is_skipped_and_counted() -> None:
    run = Run(NAN, 0.25, skip_non_finite=True)
    assert run.step()["num_skipped_steps"] == 1
    assert run.weight == 1
    assert run.step()["num_skipped_steps"] == 1
    assert run.weight == 0.75


def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted() -> None:
    run = Run(0.25, 0.25, skip_non_finite=True)
    hook = run.model.layer.weight.register_hook(lambda gradient: gradient * NAN)
    assert run.step()["num_skipped_steps"] == 1
    assert run.weight == 1
    hook.remove()
    run.step()
    assert run.weight == 0.75


def test_a_skipped_step_uses_all_of_its_micro_batches() -> None:
    run = Run(NAN, 9.0, 0.25, 0.25, accumulation_steps=2, skip_non_finite=True)
    run.step()
    run.step()
    assert run.weight == 0.75


def test_too_many_skipped_steps_in_a_row_are_an_error() -> None:
    run = Run(*[NAN] * (MAX_SKIPS_IN_A_ROW + 1), skip_non_finite=True)
    for _ in range(MAX_SKIPS_IN_A_ROW):
        run.step()
    with pytest.raises(FloatingPointError, match=rf"{MAX_SKIPS_IN_A_ROW + 1} steps in a row"):
        run.step()


def test_a_checkpoint_contains_the_number_of_skipped_steps() -> None:
    run, resumed = Run(NAN, skip_non_finite=True), Run(0.25, skip_non_finite=True)
    run.step()
    resumed.trainer.load_state_dict(run.trainer.state_dict())
    assert resumed.step()["num_skipped_steps"] == 1


def test_a_checkpoint_of_detectron2s_trainer_can_be_loaded() -> None:
    run = Run(0.25)
    state = run.trainer.state_dict()
    del state["grad_scaler"], state["num_skipped"]
    run.trainer.load_state_dict(state)
    run.step()
    assert run.weight == 0.75


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_applies_to_products_and_not_to_weights(
    precision: torch.dtype,
) -> None:
    run = Run(0.25, precision=precision)
    run.step()
    assert run.model.dtypes == [precision]
    assert run.model.layer.weight.dtype == torch.float32


def test_losses_of_glipv2_in_bf16_are_close_to_full_precision() -> None:
    losses = []
    for precision in (None, torch.bfloat16):
        model = tiny_model(*ALL_LOSSES, *DETERMINISTIC).train()
        model.language_backbone.eval()  # BERT's dropout
        model.loss_heads["masked_language"].masker = mask_every_third_word
        trainer = AccumulatingTrainer(
            model=model,
            data_loader=[glipv2_batches()["all kinds"]],
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            precision=precision,
        )
        with EventStorage() as storage:
            trainer.run_step()
        metrics = storage.latest()
        losses.append({name: metrics[name][0] for name in metrics if "loss" in name})
    full, half = losses
    assert half != full
    assert half == pytest.approx(full, rel=0.05)


def test_overflowing_gradients_in_fp16_halve_the_scale_and_skip_the_step() -> None:
    run = Run(0.25, 0.25, precision=torch.float16)
    before = run.trainer.grad_scaler.get_scale()
    assert before > torch.finfo(torch.float16).max
    run.step()
    assert run.weight == 1
    assert run.trainer.grad_scaler.get_scale() == before / 2
    run.step()
    assert run.weight == 0.75


def test_a_checkpoint_contains_the_gradient_scale() -> None:
    run, resumed = (Run(0.25, precision=torch.float16) for _ in range(2))
    run.step()
    assert run.trainer.grad_scaler.get_scale() != resumed.trainer.grad_scaler.get_scale()
    resumed.trainer.load_state_dict(run.trainer.state_dict())
    assert resumed.trainer.grad_scaler.get_scale() == run.trainer.grad_scaler.get_scale()


@pytest.mark.parametrize(
    ("amp", "precision"),
    [((False, "bf16"), None), ((True, "bf16"), torch.bfloat16), ((True, "fp16"), None)],
    ids=["off", "bf16", "fp16 needs CUDA"],
)
def test_the_config_sets_the_precision_on_a_cpu(
    amp: tuple[bool, str], precision: torch.dtype | None
) -> None:
    cfg = cfg_with()
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = amp
    model = OneWeight()
    trainer = build_accumulating_trainer(cfg, model, [], torch.optim.SGD(model.parameters()))
    assert trainer.precision == precision


def test_the_images_of_a_step_are_divided_into_micro_batches() -> None:
    assert images_per_micro_batch(cfg_with(IMS_PER_BATCH=12, ACCUMULATION_STEPS=3)) == 4


@pytest.mark.parametrize("micro_batches", [5, 0])
def test_images_that_cannot_be_divided_evenly_are_an_error(micro_batches: int) -> None:
    with pytest.raises(
        ValueError, match=rf"IMS_PER_BATCH is 12, SOLVER\.ACCUMULATION_STEPS {micro_batches}"
    ):
        images_per_micro_batch(cfg_with(IMS_PER_BATCH=12, ACCUMULATION_STEPS=micro_batches))


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.AMP.PRECISION", "half"), ("SOLVER.NON_FINITE", "ignore")]
)
def test_an_unknown_value_is_an_error_with_the_known_ones(key: str, value: str) -> None:
    cfg = cfg_with()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=rf"{key} is '{value}'; use one of"):
        build_accumulating_trainer(cfg, OneWeight(), [], None)
