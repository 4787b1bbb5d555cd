"""Files into models: ours, GLIP's, ImageNet Swin's, Detectron2's; what does not fit; resuming."""

from __future__ import annotations

import copy
import logging
import pickle
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn

from glipv2_d2.checkpoint import GLIPv2Checkpointer, from_glip, load_weights
from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes, full_state_dict

ShellOf = Callable[[Mapping[str, Tensor]], nn.Module]


@pytest.fixture
def glip_model(shell_of: ShellOf, glip_weights: dict[str, Tensor]) -> nn.Module:
    """Has the names and shapes of the small GLIP-T's weights; all zero."""
    return shell_of(from_glip(glip_weights)[0])


@pytest.fixture
def swin_model() -> nn.Module:
    """A Swin where ours has it, and another part."""
    torch.manual_seed(0)
    swin = SwinTransformer(
        embed_dim=8,
        depths=(2, 1),
        num_heads=(2, 2),
        window_size=3,
        drop_path_rate=0.0,
        out_indices=(0, 1),
    )
    return nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": swin}), "other": nn.Linear(2, 2)})


@pytest.fixture
def imagenet_weights() -> dict[str, Tensor]:
    """As the original release of Swin writes them, for ``swin_model``."""
    torch.manual_seed(1)
    swin = SwinTransformer(
        embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=3, out_indices=()
    )
    return {
        **swin.state_dict(),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 9, 9),
        "norm.weight": torch.ones(16),
        "norm.bias": torch.ones(16),
        "head.weight": torch.ones(1000, 16),
        "head.bias": torch.ones(1000),
    }


# GLIP files


def test_all_weights_of_a_glip_file_are_loaded(
    glip_model: nn.Module, glip_weights: dict[str, Tensor], glip_file: Path
) -> None:
    GLIPv2Checkpointer(glip_model).load(str(glip_file))
    expected, _ = from_glip(glip_weights)
    assert all(torch.equal(v, expected[name]) for name, v in glip_model.state_dict().items())


def test_the_load_report_of_a_glip_file_is_logged(
    glip_model: nn.Module, glip_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        GLIPv2Checkpointer(glip_model).load(str(glip_file))
    assert "314 loaded, 14 recomputed, 2 ignored" in caplog.text


def test_the_training_state_of_a_glip_file_is_not_loaded(
    glip_model: nn.Module, glip_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    ema = {name: value + 1 for name, value in glip_weights.items() if value.is_floating_point()}
    content = {"model": glip_weights, "model_ema": ema, "iteration": 9, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "training.pth")
    rest = GLIPv2Checkpointer(glip_model).load(str(tmp_path / "training.pth"))
    assert rest == {}
    name = "proposal_generator.region_word.bias"
    assert torch.equal(glip_model.state_dict()[name], from_glip(glip_weights)[0][name])


def test_one_error_lists_all_mismatches_and_nothing_is_loaded(
    glip_model: nn.Module, glip_weights: dict[str, Tensor]
) -> None:
    weights = dict(glip_weights)
    del weights["module.rpn.head.bbox_pred.weight"], weights["module.rpn.head.bbox_pred.bias"]
    weights["module.rpn.head.bias_lang"] = torch.zeros(5)
    weights["module.rpn.head.surprise"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not match the model") as error:
        load_weights(glip_model, weights, source="'odd.pth'")
    message = str(error.value)
    assert "'odd.pth' (GLIP names)" in message
    assert "region_word.bias_language: (5,) in the file, (64,) in the model" in message
    assert "missing in the file (2):\n  proposal_generator.bbox_pred.{bias, weight}" in message
    assert "in the file, but not in the model (1):\n  rpn.head.surprise" in message
    assert not any(value.any() for value in glip_model.state_dict().values())


def test_a_file_with_fusion_does_not_match_a_model_without(
    shell_of: ShellOf, glip_weights: dict[str, Tensor]
) -> None:
    ours, _ = from_glip(glip_weights)
    unfused = {n: v for n, v in ours.items() if "fusion" not in n and "language_layer" not in n}
    with pytest.raises(ValueError, match=r"(?s)fusion\.attention.*MODEL\.FUSED_HEAD\.NAME"):
        load_weights(shell_of(unfused), glip_weights, source="t.pth")


# ImageNet Swin files


def test_an_imagenet_file_initialises_the_backbone_and_only_it(
    swin_model: nn.Module, imagenet_weights: dict[str, Tensor]
) -> None:
    before = copy.deepcopy(swin_model.state_dict())
    report = load_weights(swin_model, imagenet_weights, source="swin.pth")
    for name, value in swin_model.state_dict().items():
        plain = name.removeprefix("backbone.bottom_up.")
        assert torch.equal(value, imagenet_weights.get(plain, before[name])), name
    assert set(report.ignored) == {
        "layers.0.blocks.1.attn_mask", "norm.weight", "norm.bias", "head.weight", "head.bias"
    }  # fmt: skip


def test_output_norms_start_as_the_identity(
    swin_model: nn.Module, imagenet_weights: dict[str, Tensor]
) -> None:
    load_weights(swin_model, imagenet_weights, source="swin.pth")
    norm = swin_model["backbone"]["bottom_up"].norm1
    assert torch.equal(norm.weight, torch.ones(16))
    assert torch.equal(norm.bias, torch.zeros(16))


def test_an_incomplete_imagenet_file_raises_an_error(
    swin_model: nn.Module, imagenet_weights: dict[str, Tensor]
) -> None:
    del imagenet_weights["layers.0.blocks.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"missing in the file \(1\):\n.*mlp\.fc1\.weight"):
        load_weights(swin_model, imagenet_weights, source="swin.pth")


def test_another_size_of_swin_raises_an_error(
    swin_model: nn.Module, imagenet_weights: dict[str, Tensor]
) -> None:
    imagenet_weights["patch_embed.norm.bias"] = torch.zeros(192)
    with pytest.raises(ValueError, match=r"patch_embed\.norm\.bias: \(192,\) in the file, \(8,\)"):
        load_weights(swin_model, imagenet_weights, source="swin.pth")


# Our files


def test_a_saved_file_is_loaded(glip_model: nn.Module, tmp_path: Path) -> None:
    saved = copy.deepcopy(glip_model)
    nn.init.normal_(saved.get_parameter("proposal_generator.bbox_pred.weight"))
    GLIPv2Checkpointer(saved, str(tmp_path)).save("model", iteration=3)
    rest = GLIPv2Checkpointer(glip_model).load(str(tmp_path / "model.pth"))
    assert rest == {"iteration": 3}
    expected = saved.state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in glip_model.state_dict().items())


class WithFrozenEncoder(nn.ModuleDict, CheckpointPrefixes):
    checkpoint_excluded = ("encoder.",)


def test_excluded_parts_are_not_saved_and_not_required(tmp_path: Path) -> None:
    model = WithFrozenEncoder({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    GLIPv2Checkpointer(model, str(tmp_path)).save("model")
    other = copy.deepcopy(model)
    nn.init.zeros_(other["head"].weight)
    nn.init.ones_(other["encoder"].weight)
    GLIPv2Checkpointer(other).load(str(tmp_path / "model.pth"))
    assert torch.equal(other["head"].weight, model["head"].weight)
    assert torch.equal(other["encoder"].weight, torch.ones(2, 2))


def test_excluded_parts_are_loaded_if_a_file_has_them() -> None:
    model = WithFrozenEncoder({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    weights = {name: torch.full_like(v, 5.0) for name, v in full_state_dict(model).items()}
    load_weights(model, weights, source="full.pth")
    assert torch.equal(model["encoder"].bias, torch.full((2,), 5.0))


class WithLosses(CheckpointPrefixes):
    """A model some of whose parts only a loss reads; here without them."""

    checkpoint_optional = ("loss_a.", "loss_b.")

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        for name, part in parts.items():
            self.add_module(name, part)


def test_weights_of_losses_that_the_model_lacks_are_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a second training phase without these losses."""
    first, second = WithLosses(loss_a=nn.Linear(2, 2)), WithLosses()
    report = load_weights(second, first.state_dict(), source="first.pth")
    assert torch.equal(second.net.weight, first.net.weight)
    assert set(report.ignored) == {"loss_a.weight", "loss_a.bias"}
    assert caplog.text == ""


def test_a_warning_lists_loss_heads_that_the_file_lacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = WithLosses(), WithLosses(loss_b=nn.Linear(2, 2))
    load_weights(second, first.state_dict(), source="'first.pth'")
    assert torch.equal(second.net.weight, first.net.weight)
    assert "'first.pth' has no weights of these parts, which" in caplog.text
    assert "loss_b.{bias, weight}" in caplog.text


def test_missing_parts_that_only_losses_use_are_logged_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = WithLosses(), WithLosses(loss_a=nn.Linear(2, 2), loss_b=nn.Linear(2, 2))
    second.checkpoint_loss_only = ("loss_a.",)
    with caplog.at_level("INFO"):
        load_weights(second, first.state_dict(), source="first.pth")
    messages = {record.levelname: record.getMessage() for record in caplog.records}
    assert "loss_a.{bias, weight}" in messages["INFO"] and "loss_b" not in messages["INFO"]
    assert "loss_b.{bias, weight}" in messages["WARNING"] and "loss_a" not in messages["WARNING"]


def test_missing_parts_without_effect_are_logged_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = WithLosses(), WithLosses(loss_a=nn.Linear(2, 2), loss_b=nn.Linear(2, 2))
    second.checkpoint_neutral = ("loss_b.",)
    with caplog.at_level("INFO"):
        load_weights(second, first.state_dict(), source="first.pth")
    messages = {record.levelname: record.getMessage() for record in caplog.records}
    assert "loss_b.{bias, weight}" in messages["INFO"] and "loss_a" not in messages["INFO"]
    assert "loss_a.{bias, weight}" in messages["WARNING"] and "loss_b" not in messages["WARNING"]


def test_loss_heads_of_another_size_raise_an_error() -> None:
    first, second = WithLosses(loss_a=nn.Linear(2, 2)), WithLosses(loss_a=nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"loss_a\.weight: \(2, 2\) in the file, \(2, 3\)"):
        load_weights(second, first.state_dict(), source="first.pth")


def test_all_other_parts_are_required() -> None:
    model = WithLosses(loss_b=nn.Linear(2, 2))
    weights = {"net.weight": torch.zeros(2, 2), "loss_c.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"(?s)missing.*net\.bias.*but not in the model.*loss_c"):
        load_weights(model, weights, source="odd.pth")


def test_the_error_for_a_file_of_another_project_has_its_first_names(glip_model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"has no weights of this model.*conv1\.weight"):
        load_weights(glip_model, {"conv1.weight": torch.zeros(1)}, source="resnet.pth")


def test_a_file_can_be_loaded_after_an_error(
    glip_model: nn.Module, glip_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "page.pth").write_bytes(b"<html></html>")
    checkpointer = GLIPv2Checkpointer(glip_model)
    with pytest.raises(ValueError, match="a web page"):
        checkpointer.load(str(tmp_path / "page.pth"))
    checkpointer.load(str(glip_file))
    assert glip_model.get_parameter("proposal_generator.level_scales.0").any()


def test_a_missing_file_raises_an_error(glip_model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        GLIPv2Checkpointer(glip_model).load(str(tmp_path / "nowhere.pth"))


def test_an_empty_path_loads_nothing(glip_model: nn.Module) -> None:
    assert GLIPv2Checkpointer(glip_model).load("") == {}


def test_pickles_are_loaded_by_detectron2(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    content = {"model": {"weight": torch.ones(2, 2).numpy()}, "__author__": "Third Party"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    GLIPv2Checkpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert torch.equal(model.weight, torch.ones(2, 2))


def test_urls_are_resolved_by_detectron2s_path_manager(
    glip_model: nn.Module, glip_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = GLIPv2Checkpointer(glip_model)
    requested = []

    def get_local_path(path: str, *_: Any, **__: Any) -> str:
        requested.append(path)
        return str(glip_file)

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", get_local_path)
    checkpointer.load("https://example.org/glip.pth")
    assert requested[0] == "https://example.org/glip.pth"
    assert glip_model.get_parameter("proposal_generator.level_scales.0").any()


# Saving and resuming


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    checkpointer = GLIPv2Checkpointer(model, str(tmp_path))
    checkpointer.save("model")
    with pytest.raises(Exception, match="pickle"):
        checkpointer.save("model", extra=lambda: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model.pth")
    checkpointer.resume_or_load("", resume=True)


class Regression(nn.Linear):
    """A model of one layer under Detectron2's training interface."""

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"loss": super().forward(torch.stack(batch)).square().mean()}


class TinyTrainer(DefaultTrainer):
    """Detectron2's trainer with GLIPv2Checkpointer, two saves, no datasets."""

    def build_hooks(self) -> list[Any]:
        self.checkpointer = GLIPv2Checkpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return [hook for hook in super().build_hooks() if "Eval" not in type(hook).__name__]

    def build_writers(self) -> list[Any]:
        return []

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        return Regression(3, 2)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> list[list[Tensor]]:
        return [[torch.full((3,), 1.0), torch.full((3,), -0.5)]] * 100


def trainer_config(output: Path, iterations: int) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(output)
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.STEPS = (3,)
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.BASE_LR = 0.1
    return cfg


def test_training_resumes_at_the_saved_iteration(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = TinyTrainer(trainer_config(tmp_path / "whole", 6))
    whole.train()
    (tmp_path / "parts").mkdir()
    TinyTrainer(trainer_config(tmp_path / "parts", 4)).train()
    second = TinyTrainer(trainer_config(tmp_path / "parts", 6))
    second.resume_or_load(resume=True)
    assert second.start_iter == 4
    second.train()
    # Weights agree only if momentum, learning rate and iteration were those of the first part.
    assert torch.equal(second.model.weight, whole.model.weight)
