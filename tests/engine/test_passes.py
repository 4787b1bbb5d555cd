"""Steps of the optimizer on a model of one weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage
from helpers.models import tiny_model
from helpers.two_processes import ALL_LOSSES, NOTHING_RANDOM, mask_every_third_word
from helpers.two_processes import batches as glipv2_batches
from torch import Tensor, nn

from glipv2_d2.config import add_glipv2_config
from glipv2_d2.engine.param_groups import with_gradient_clipping
from glipv2_d2.engine.passes import (
    MAX_SKIPS_IN_A_ROW,
    MultiPassTrainer,
    build_multi_pass_trainer,
    images_per_pass,
)

NAN, INF = float("nan"), float("inf")


class OneWeight(nn.Module):
    """Loss: weight times the mean of the inputs. ``dtypes``: of the products."""

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
    """Of one image each, "0.png" the first."""
    return [[{"value": value, "file_name": f"{i}.png"}] for i, value in enumerate(values)]


class Run:
    """Steps of SGD with rate 1, so that a step takes the gradient off the weight."""

    def __init__(self, *values: float, **options: Any) -> None:
        self.model = OneWeight()
        optimizer = with_gradient_clipping(torch.optim.SGD, 1.0, 2.0)(
            self.model.parameters(), lr=1.0
        )
        self.trainer = MultiPassTrainer(
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


def test_a_step_takes_the_mean_gradient_of_its_passes() -> None:
    run = Run(0.25, 0.75, 5.0, num_passes=2)
    run.step()
    assert run.weight == 0.5


def test_the_losses_told_are_the_means_of_the_passes() -> None:
    metrics = Run(0.25, 0.75, num_passes=2).step()
    assert (metrics["loss_a"], metrics["total_loss"]) == (0.5, 0.5)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_stops_with_its_name_and_the_images_before_the_weights_change(
    value: float,
) -> None:
    run = Run(0.25, value, num_passes=2)
    with pytest.raises(FloatingPointError, match=rf"loss_a is {value}.*1\.png") as caught:
        run.step()
    assert "0.png" not in str(caught.value)
    assert run.weight == 1


def test_a_gradient_that_is_not_finite_stops_with_the_images() -> None:
    run = Run(0.25)
    run.model.layer.weight.register_hook(lambda gradient: gradient * NAN)
    with pytest.raises(FloatingPointError, match=r"gradient.*0\.png"):
        run.step()
    assert run.weight == 1


def test_a_step_without_a_finite_loss_is_skipped_and_counted() -> None:
    run = Run(NAN, 0.25, skips_non_finite=True)
    assert run.step()["num_skipped_steps"] == 1
    assert run.weight == 1
    assert run.step()["num_skipped_steps"] == 1
    assert run.weight == 0.75


def test_a_step_without_a_finite_gradient_is_skipped_and_counted() -> None:
    run = Run(0.25, 0.25, skips_non_finite=True)
    spoiling = run.model.layer.weight.register_hook(lambda gradient: gradient * NAN)
    assert run.step()["num_skipped_steps"] == 1
    assert run.weight == 1
    spoiling.remove()
    run.step()
    assert run.weight == 0.75


def test_a_skipped_step_takes_all_of_its_batches() -> None:
    run = Run(NAN, 9.0, 0.25, 0.25, num_passes=2, skips_non_finite=True)
    run.step()
    run.step()
    assert run.weight == 0.75


def test_a_model_that_is_lost_is_not_skipped_forever() -> None:
    run = Run(*[NAN] * (MAX_SKIPS_IN_A_ROW + 1), skips_non_finite=True)
    for _ in range(MAX_SKIPS_IN_A_ROW):
        run.step()
    with pytest.raises(FloatingPointError, match=rf"{MAX_SKIPS_IN_A_ROW + 1} steps in a row"):
        run.step()


def test_the_count_of_skipped_steps_is_part_of_a_checkpoint() -> None:
    run, resumed = Run(NAN, skips_non_finite=True), Run(0.25, skips_non_finite=True)
    run.step()
    resumed.trainer.load_state_dict(run.trainer.state_dict())
    assert resumed.step()["num_skipped_steps"] == 1


def test_a_checkpoint_of_detectron2s_trainer_can_be_resumed() -> None:
    run = Run(0.25)
    state = run.trainer.state_dict()
    del state["grad_scaler"], state["num_skipped"]
    run.trainer.load_state_dict(state)
    run.step()
    assert run.weight == 0.75


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_products_and_not_of_the_weights(
    precision: torch.dtype,
) -> None:
    run = Run(0.25, precision=precision)
    run.step()
    assert run.model.dtypes == [precision]
    assert run.model.layer.weight.dtype == torch.float32


def test_glipv2_has_much_the_same_losses_in_bf16() -> None:
    losses = []
    for precision in (None, torch.bfloat16):
        model = tiny_model(*ALL_LOSSES, *NOTHING_RANDOM).train()
        model.language_backbone.eval()  # BERT's dropout
        model.masked_language.masker = mask_every_third_word
        trainer = MultiPassTrainer(
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


def test_gradients_that_overflow_in_fp16_lower_their_scale_and_leave_the_step_out() -> None:
    run = Run(0.25, 0.25, precision=torch.float16)
    before = run.trainer.grad_scaler.get_scale()
    assert before > torch.finfo(torch.float16).max
    run.step()
    assert run.weight == 1
    assert run.trainer.grad_scaler.get_scale() == before / 2
    run.step()
    assert run.weight == 0.75


def test_the_scale_of_gradients_is_part_of_a_checkpoint() -> None:
    run, resumed = (Run(0.25, precision=torch.float16) for _ in range(2))
    run.step()
    assert run.trainer.grad_scaler.get_scale() != resumed.trainer.grad_scaler.get_scale()
    resumed.trainer.load_state_dict(run.trainer.state_dict())
    assert resumed.trainer.grad_scaler.get_scale() == run.trainer.grad_scaler.get_scale()


@pytest.mark.parametrize(
    ("amp", "precision"),
    [((False, "bf16"), None), ((True, "bf16"), torch.bfloat16), ((True, "fp16"), None)],
    ids=["off", "bf16", "fp16 is left to CUDA"],
)
def test_the_config_chooses_the_precision_on_a_cpu(
    amp: tuple[bool, str], precision: torch.dtype | None
) -> None:
    cfg = cfg_with()
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = amp
    model = OneWeight()
    trainer = build_multi_pass_trainer(cfg, model, [], torch.optim.SGD(model.parameters()))
    assert trainer.precision == precision


def test_the_images_of_a_step_are_shared_out_to_its_passes() -> None:
    assert images_per_pass(cfg_with(IMS_PER_BATCH=12, ACCUMULATE=3)) == 4


@pytest.mark.parametrize("passes", [5, 0])
def test_images_that_cannot_be_shared_out_are_named(passes: int) -> None:
    with pytest.raises(ValueError, match=rf"IMS_PER_BATCH is 12, SOLVER\.ACCUMULATE {passes}"):
        images_per_pass(cfg_with(IMS_PER_BATCH=12, ACCUMULATE=passes))


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.AMP.PRECISION", "half"), ("SOLVER.NON_FINITE", "ignore")]
)
def test_an_unknown_value_is_answered_with_the_known_ones(key: str, value: str) -> None:
    cfg = cfg_with()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=rf"{key} is '{value}'; use one of"):
        build_multi_pass_trainer(cfg, OneWeight(), [], None)
