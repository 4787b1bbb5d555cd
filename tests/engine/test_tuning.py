"""A delta brings a base to what was fine-tuned, and to nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from helpers.masks import MASKS
from helpers.models import random_image, tiny_cfg, tiny_model
from torch import nn

from glipv2_d2 import Predictor
from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.trainer import Trainer
from glipv2_d2.engine.tuning import build_tuned_model, read_delta, save_delta

POLICIES = ("full", "linear_probe", "lora", "prompt", "text_only")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("base") / "base.pth"
    save_weights(tiny_model(), path)
    return str(path)


def config(base: str, *opts: Any) -> CfgNode:
    return tiny_cfg("MODEL.WEIGHTS", base, *opts)


def disturb(model: nn.Module) -> None:
    """Move what a training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.1)


def tuned(base: str, path: Path, policy: str, *opts: Any) -> nn.Module:
    """A fine-tuned model whose delta is written to ``path``."""
    model = build_tuned_model(config(base, "MODEL.TUNING.NAME", policy, *opts))
    disturb(model)
    save_delta(model, path)
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_the_base_with_its_delta_is_the_fine_tuned_model(
    base: str, tmp_path: Path, policy: str
) -> None:
    model = tuned(base, tmp_path / "delta.pth", policy)
    loaded = build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth")))
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_delta_has_what_differs_alone(base: str, tmp_path: Path) -> None:
    model = build_tuned_model(config(base, "MODEL.TUNING.NAME", "full"))
    with torch.no_grad():
        model.proposal_generator.bbox_pred.bias.add_(1)
    save_delta(model, tmp_path / "delta.pth")
    assert set(read_delta(tmp_path / "delta.pth").tensors) == {"proposal_generator.bbox_pred.bias"}


def test_a_delta_brings_masks_to_a_base_without_them(base: str, tmp_path: Path) -> None:
    """Also to a model whose own masks are other random numbers."""
    model = tuned(base, tmp_path / "delta.pth", "mask_heads", *MASKS)
    masks = {name for name in model.state_dict() if name.startswith("roi_heads.")}
    assert set(read_delta(tmp_path / "delta.pth").tensors) == masks
    torch.manual_seed(7)
    cfg = config(base, "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"), *MASKS)
    state = build_tuned_model(cfg).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_prompts_delta_is_small(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "prompt", "MODEL.TUNING.PROMPT.NUM_ROWS", 4)
    assert (tmp_path / "delta.pth").stat().st_size < 0.1 * Path(base).stat().st_size


def test_a_delta_brings_the_settings_of_its_policy(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "prompt", "MODEL.TUNING.PROMPT.NUM_ROWS", 4)
    loaded = build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(tmp_path / "delta.pth")))
    assert loaded.language_backbone.table.shape == (4, 16)


def test_a_delta_on_a_delta_is_still_one_of_the_base(base: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first.pth"), str(tmp_path / "second.pth")
    tuned(base, Path(first), "linear_probe")
    model = build_tuned_model(config(base, "MODEL.TUNING.DELTA", first))
    disturb(model)
    save_delta(model, second)
    loaded = build_tuned_model(config(base, "MODEL.TUNING.DELTA", second))
    assert torch.equal(
        loaded.proposal_generator.bbox_pred.weight, model.proposal_generator.bbox_pred.weight
    )


def test_another_base_is_refused(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "linear_probe")
    other = tiny_model()
    with torch.no_grad():
        other.proposal_generator.centerness.bias.add_(1e-3)
    save_weights(other, tmp_path / "other.pth")
    opts = ("MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"))
    with pytest.raises(ValueError, match=r"delta\.pth.*other weights.*base\.pth.*other\.pth"):
        build_tuned_model(config(str(tmp_path / "other.pth"), *opts))


def test_another_policy_is_refused(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "linear_probe")
    opts = ("MODEL.TUNING.DELTA", str(tmp_path / "delta.pth"), "MODEL.TUNING.NAME", "prompt")
    with pytest.raises(ValueError, match=r"'linear_probe'.*'prompt'"):
        build_tuned_model(config(base, *opts))


def test_names_and_shapes_that_do_not_fit_are_named(base: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.pth"
    tuned(base, path, "linear_probe")
    content = torch.load(path, weights_only=True)
    content["model"]["no.such.weight"] = torch.ones(1)
    content["model"]["proposal_generator.bbox_pred.bias"] = torch.ones(5)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"(?s)bbox_pred\.bias.*no\.such\.weight"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(path)))


def test_a_part_that_the_policy_adds_may_not_be_missing(base: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.pth"
    tuned(base, path, "prompt")
    content = torch.load(path, weights_only=True)
    content["model"] = {"proposal_generator.bbox_pred.bias": torch.ones(4)}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"(?s)missing.*language_backbone\.table"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", str(path)))


def test_whole_weights_are_no_delta(base: str) -> None:
    with pytest.raises(ValueError, match=r"base\.pth.*no delta"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", base))


def test_a_delta_that_is_not_there_is_named(base: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        build_tuned_model(config(base, "MODEL.TUNING.DELTA", "nowhere.pth"))


def test_a_policy_needs_a_base() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        build_tuned_model(config("", "MODEL.TUNING.NAME", "full"))


def test_nothing_that_differs_is_an_error_and_no_file(base: str, tmp_path: Path) -> None:
    model = build_tuned_model(config(base, "MODEL.TUNING.NAME", "full"))
    with pytest.raises(ValueError, match="nothing differs"):
        save_delta(model, tmp_path / "delta.pth")
    assert not list(tmp_path.iterdir())


def test_what_only_losses_read_is_in_no_delta(base: str, tmp_path: Path) -> None:
    tuned(base, tmp_path / "delta.pth", "full", "MODEL.INTER_IMAGE.WEIGHT", 1.0)
    names = read_delta(tmp_path / "delta.pth").tensors
    assert names and not any(name.startswith("inter_image.") for name in names)


@pytest.mark.parametrize("policy", ["prompt", "lora"])
def test_the_predictor_answers_as_the_fine_tuned_model(
    base: str, tmp_path: Path, policy: str
) -> None:
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


def test_training_with_a_policy_writes_its_delta(cfg: CfgNode, tmp_path: Path) -> None:
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
