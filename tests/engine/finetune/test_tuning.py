"""A delta turns its base into the fine-tuned model, and is refused for other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.masks import MASKS
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.tuning import build_tuned_model
from torch import nn

from glipv2_d2 import Predictor
from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.finetune.tuning import Tuning, apply_tuning, read_delta, save_delta
from glipv2_d2.engine.train.trainer import Trainer
from glipv2_d2.modeling import GLIPv2

POLICIES = ("full", "linear_probe", "lora", "prompt", "text_only")


def config(base: str, *opts: Any) -> CfgNode:
    return tiny_cfg("MODEL.WEIGHTS", base, *opts)


def perturb(model: nn.Module) -> None:
    """Change the trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.1)


def build_with_base(cfg: CfgNode) -> tuple[nn.Module, Tuning]:
    model = build_model(cfg)
    tuning = apply_tuning(cfg, model)
    assert tuning is not None
    return model, tuning


def tuned(base: str, path: Path, policy: str, *opts: Any) -> nn.Module:
    """Build a fine-tuned model and write its delta to ``path``."""
    model, tuning = build_with_base(config(base, "MODEL.TUNING.NAME", policy, *opts))
    perturb(model)
    save_delta(model, tuning, path)
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_base_plus_delta_equals_the_fine_tuned_model(
    base: str, tmp_path: Path, policy: str
) -> None:
    model = tuned(base, tmp_path / "delta.pth", policy)
    loaded = build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth")))
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_delta_contains_only_tensors_that_differ(base: str, tmp_path: Path) -> None:
    model, tuning = build_with_base(config(base, "MODEL.TUNING.NAME", "full"))
    with torch.no_grad():
        model.proposal_generator.bbox_pred.bias.add_(1)
    save_delta(model, tuning, tmp_path / "delta.pth")
    assert set(read_delta(tmp_path / "delta.pth").tensors) == {"proposal_generator.bbox_pred.bias"}


def test_a_delta_contains_mask_heads_that_the_base_lacks(base: str, tmp_path: Path) -> None:
    """The loading model's own mask heads have other random weights."""
    model = tuned(base, tmp_path / "delta.pth", "mask_heads", *MASKS)
    masks = {name for name in model.state_dict() if name.startswith("roi_heads.")}
    assert set(read_delta(tmp_path / "delta.pth").tensors) == masks
    torch.manual_seed(7)
    cfg = config(base, "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"), *MASKS)
    state = build_tuned_model(cfg).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_delta_of_the_prompt_policy_is_small(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "prompt", "MODEL.TUNING.PROMPT.NUM_ROWS", 4)
    assert (tmp_path / "delta.pth").stat().st_size < 0.1 * Path(base).stat().st_size


def test_a_delta_restores_the_settings_of_its_policy(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "prompt", "MODEL.TUNING.PROMPT.NUM_ROWS", 4)
    loaded = build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth")))
    assert loaded.language_backbone.table.shape == (4, 16)


def test_the_delta_of_a_model_with_a_delta_refers_to_the_base(base: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first.pth"), str(tmp_path / "second.pth")
    tuned(base, Path(first), "linear_probe")
    model, tuning = build_with_base(config(base, "MODEL.TUNING.DELTA", first))
    perturb(model)
    save_delta(model, tuning, second)
    loaded = build_tuned_model(config(base, "MODEL.TUNING.DELTA", second))
    assert torch.equal(
        loaded.proposal_generator.bbox_pred.weight, model.proposal_generator.bbox_pred.weight
    )


def test_a_delta_for_another_base_is_an_error(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "linear_probe")
    other = tiny_model()
    with torch.no_grad():
        other.proposal_generator.centerness.bias.add_(1e-3)
    save_weights(other, tmp_path / "other.pth")
    opts = ("MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"))
    with pytest.raises(ValueError, match=r"delta\.pth.*other weights.*base\.pth.*other\.pth"):
        build_tuned_model(config(str(tmp_path / "other.pth"), *opts))


def test_a_delta_of_another_policy_is_an_error(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "linear_probe")
    opts = ("MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"), "MODEL.TUNING.NAME", "prompt")
    with pytest.raises(ValueError, match=r"'linear_probe'.*'prompt'"):
        build_tuned_model(config(base, *opts))


def test_unknown_names_and_wrong_shapes_are_listed_in_the_error(base: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.pth"
    tuned(base, path, "linear_probe")
    content = torch.load(path, weights_only=True)
    content["model"]["no.such.weight"] = torch.ones(1)
    content["model"]["proposal_generator.bbox_pred.bias"] = torch.ones(5)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"(?s)bbox_pred\.bias.*no\.such\.weight"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(path)))


def test_a_delta_without_a_tensor_of_its_policy_is_an_error(base: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.pth"
    tuned(base, path, "prompt")
    content = torch.load(path, weights_only=True)
    content["model"] = {"proposal_generator.bbox_pred.bias": torch.ones(4)}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"(?s)missing.*language_backbone\.table"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(path)))


def test_full_weights_as_a_delta_are_an_error(base: str) -> None:
    with pytest.raises(ValueError, match=r"base\.pth.*not a delta"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", base))


def test_a_missing_delta_file_is_an_error(base: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", "nowhere.pth"))


def test_a_policy_without_a_base_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        build_tuned_model(config("", "MODEL.TUNING.NAME", "full"))


def test_saving_an_empty_delta_is_an_error_and_writes_no_file(base: str, tmp_path: Path) -> None:
    model, tuning = build_with_base(config(base, "MODEL.TUNING.NAME", "full"))
    with pytest.raises(ValueError, match="no tensor differs"):
        save_delta(model, tuning, tmp_path / "delta.pth")
    assert not list(tmp_path.iterdir())


def test_weights_of_loss_heads_are_not_in_a_delta(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "full", "MODEL.INTER_IMAGE.WEIGHT", 1.0)
    names = read_delta(tmp_path / "delta.pth").tensors
    assert names and not any(name.startswith(GLIPv2.checkpoint_loss_only) for name in names)


@pytest.mark.parametrize("policy", ["prompt", "lora"])
def test_the_predictor_loads_a_delta(base: str, tmp_path: Path, policy: str) -> None:
    opts = ("MODEL.GROUNDING.SCORE_THRESH", 0.0)
    tuned(base, tmp_path / "delta.pth", policy, *opts)
    image = random_image().permute(1, 2, 0).numpy()
    scores = [
        Predictor(config(base, *opts), delta=delta)
        .predict(image, classes=["cat"], channel_order="RGB")
        .instances.scores
        for delta in (None, tmp_path / "delta.pth")
    ]
    assert not torch.equal(*scores)


def test_training_with_a_policy_writes_the_delta(cfg: CfgNode, tmp_path: Path) -> None:
    """With the stand-in model, which trains in milliseconds."""
    cfg.SOLVER.MAX_ITER = 2
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.OUTPUT_DIR = str(tmp_path / "tuned")
    cfg.MODEL.TUNING.NAME = "text_only"
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert set(read_delta(tmp_path / "tuned/delta.pth").tensors) == {"language_backbone.weight"}
