"""Learning rates, weight decay and schedule equal those of GLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.solver import build_lr_scheduler
from helpers.models import glip_cfg
from torch import nn

from glipv2_d2.checkpoint import from_glip
from glipv2_d2.engine.parameter_prefixes import FUSED_HEAD, TEXT_HEADS
from glipv2_d2.engine.train.param_groups import (
    build_optimizer,
    param_groups,
    with_gradient_clipping,
)

MISC = json.loads((Path(__file__).parents[2] / "assets/misc/misc.json").read_text())
GLIP_GROUPS = {
    # The head's unused classifier has no counterpart here.
    name: values
    for name, values in MISC["optimizer"]["groups"].items()
    if "cls_logits" not in name
}


def model_of(names: list[str]) -> nn.Module:
    """A module tree with parameters of these names."""
    root = nn.Module()
    for name in names:
        *path, own = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(own, nn.Parameter(torch.zeros(1)))
    return root


def hyperparameters(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    name_of = {id(p): name for name, p in model.named_parameters()}
    return {
        name_of[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


@pytest.fixture(scope="module")
def name_of_glip_name() -> dict[str, str]:
    """GLIP's name -> name in this package, traced by the value of each tensor."""
    numbered = {f"module.{name}": torch.tensor([float(i)]) for i, name in enumerate(GLIP_GROUPS)}
    renamed, _ = from_glip(numbered)
    names = list(GLIP_GROUPS)
    return {names[int(value)]: name for name, value in renamed.items()}


@pytest.fixture
def optimizer_and_model(
    name_of_glip_name: dict[str, str],
) -> tuple[torch.optim.Optimizer, nn.Module]:
    model = model_of(list(name_of_glip_name.values()))
    return build_optimizer(glip_cfg(), model), model


def test_every_parameter_has_the_rate_and_decay_of_glip(
    optimizer_and_model: tuple, name_of_glip_name: dict[str, str]
) -> None:
    optimizer, model = optimizer_and_model
    ours = hyperparameters(model, optimizer.param_groups)
    assert len(ours) == len(GLIP_GROUPS)
    for glip_name, values in GLIP_GROUPS.items():
        assert ours[name_of_glip_name[glip_name]] == pytest.approx(tuple(values)), glip_name


def test_the_optimizer_is_that_of_glip(optimizer_and_model: tuple) -> None:
    optimizer, _ = optimizer_and_model
    assert isinstance(optimizer, torch.optim.AdamW)
    defaults = MISC["optimizer"]["defaults"]
    for group in optimizer.param_groups:
        assert list(group["betas"]) == defaults["betas"]
        assert group["eps"] == defaults["eps"]


def test_frozen_parameters_are_excluded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(glip_cfg(), model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_weight_decay_of_norms_and_rate_of_the_image_backbone_can_be_set() -> None:
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": nn.LayerNorm(2)})})
    groups = param_groups(
        model,
        base_lr=1.0,
        weight_decay=0.5,
        weight_decay_norm=0.25,
        weight_decay_bias=None,
        bias_lr_factor=2.0,
        language_lr_factor=0.1,
        backbone_lr_factor=0.5,
    )
    assert hyperparameters(model, groups) == {
        "backbone.bottom_up.weight": (0.5, 0.25),
        "backbone.bottom_up.bias": (1.0, 0.25),
    }


def test_rates_of_the_fused_head_and_the_text_heads_can_be_set() -> None:
    factors = {FUSED_HEAD: 5, **dict.fromkeys(TEXT_HEADS, 50), "proposal_generator.": 1}
    kinds = {"weight": 1, "bias": 2}
    model = model_of([f"{prefix}{kind}" for prefix in factors for kind in kinds])
    rates = {"FUSION_LR_FACTOR": 5.0, "TEXT_HEAD_LR_FACTOR": 50.0, "BASE_LR": 1.0}
    cfg = glip_cfg(*(x for key, rate in rates.items() for x in (f"SOLVER.{key}", rate)))
    values = hyperparameters(model, build_optimizer(cfg, model).param_groups)
    assert {name: rate for name, (rate, _) in values.items()} == {
        f"{prefix}{kind}": factor * bias_factor
        for prefix, factor in factors.items()
        for kind, bias_factor in kinds.items()
    }


@pytest.mark.parametrize("key", ["SOLVER.OPTIMIZER", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"])
def test_an_unknown_value_is_an_error(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}.*'nonsense'"):
        build_optimizer(glip_cfg(key, "nonsense"), nn.Linear(1, 1))


def test_the_norm_over_all_gradients_is_clipped() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = with_gradient_clipping(torch.optim.SGD, 1.0, 2.0)([first, second], lr=1.0)
    first.grad, second.grad = torch.tensor([30.0]), torch.tensor([40.0])
    optimizer.step()
    assert [first.item(), second.item()] == pytest.approx([-0.6, -0.8])


def test_a_non_finite_gradient_does_not_change_the_weights() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = with_gradient_clipping(torch.optim.AdamW, 1.0, 2.0)([parameter])
    parameter.grad = torch.tensor([float("nan")])
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert parameter.item() == 1


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("kind", ["ADAMW", "SGD"])
def test_a_first_step_skipped_in_fp16_does_not_affect_the_next(kind: str, clips: bool) -> None:
    opts = ["SOLVER.OPTIMIZER", kind, "SOLVER.CLIP_GRADIENTS.ENABLED", clips]
    model, plain = nn.Linear(1, 1), nn.Linear(1, 1)
    plain.load_state_dict(model.state_dict())
    optimizer, expected = (build_optimizer(glip_cfg(*opts), m) for m in (model, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (float("inf"), 0.25):
        optimizer.zero_grad()
        scaler.scale(sum(p.sum() for p in model.parameters()) * gradient).backward()
        scaler.step(optimizer)
        scaler.update()
    (sum(p.sum() for p in plain.parameters()) * 0.25).backward()
    expected.step()
    for ours, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, other)


def test_the_state_of_an_optimizer_that_is_not_fused_can_be_loaded() -> None:
    model = nn.Linear(2, 2)
    before = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    before.step()
    groups = [{"params": [p]} for p in model.parameters()]
    state = torch.optim.AdamW(groups, lr=0.1).state_dict()
    state["state"] = before.state_dict()["state"]
    optimizer = build_optimizer(glip_cfg(), model)
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scaler.step(optimizer)
    assert {state["step"].item() for state in optimizer.state.values()} == {2}


def test_the_schedule_of_detectron2_equals_that_of_glip() -> None:
    cfg = glip_cfg(
        *("SOLVER.MAX_ITER", 1000, "SOLVER.STEPS", (670, 890), "SOLVER.WARMUP_ITERS", 200)
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    golden = MISC["lr_multistep_1e-4_670_890_w200_f0.001"]
    assert {k: rates[int(k)] for k in golden} == pytest.approx(golden)
