from __future__ import annotations

import io
import json
from pathlib import Path

import benchmark
import pytest
import torch
from helpers.models import tiny_cfg, tiny_model
from rich.console import Console

from glipv2_d2.modeling.fusion.bi_attention import BiAttention, EvidentBiAttention

SMALL = ["--image-size", "64", "96", "--num-classes", "3", "--warmup", "1", "--repeats", "2"]


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg().dump())
    return str(path)


@pytest.fixture(autouse=True)
def _this_process_keeps_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(benchmark, "machine_tasks", lambda *_: dict.fromkeys(RATES, lambda: 1.0))


RATES = ("product", "convolution", "copy")


def measured(tmp_path: Path, *arguments: str) -> dict:
    path = tmp_path / "result.json"
    assert benchmark.main([*arguments, *SMALL, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_inference_is_measured_by_stage(config_file: str, tmp_path: Path) -> None:
    report = measured(tmp_path, "--config-file", config_file)
    stages = {"preprocess", "text", "backbone", "FPN", "fusion", "language layers", "DyConv"}
    assert stages | {"heads", "post-processing, losses", "other"} == report["stages"].keys()
    shares = sum(stage["product_flops"] for stage in report["stages"].values())
    assert 0 < shares == report["total"]["product_flops"]
    assert report["peak_bytes"] > 0
    assert report["rates"].keys() == set(RATES)


def test_masks_are_a_stage_of_models_that_have_them(config_file: str, tmp_path: Path) -> None:
    masks = ("MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", "1")
    # Random weights find nothing with more certainty.
    found = ("MODEL.GROUNDING.SCORE_THRESH", "0.0")
    path = tmp_path / "result.json"
    arguments = ["--config-file", config_file, *SMALL, "--json", str(path)]
    assert benchmark.main([*arguments, "--opts", *masks, *found]) == 0
    assert json.loads(path.read_text())["stages"]["masks"]["convolution_flops"] > 0


def test_the_boxes_have_masks_to_be_learned() -> None:
    model = tiny_model("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", 1).train()
    (x,) = benchmark.make_inputs(1, (64, 96), ["cat"], with_masks=True)
    assert model([x])["loss_mask"] > 0
    for mask, box in zip(x["instances"].gt_masks, x["instances"].gt_boxes, strict=True):
        y, x_of_pixel = mask.nonzero(as_tuple=True)
        extent = torch.stack([x_of_pixel.min(), y.min(), x_of_pixel.max(), y.max()])
        assert (extent - box).abs().max() <= 1


def test_what_checkpointing_computes_again_is_part_of_the_backward_pass(
    config_file: str, tmp_path: Path
) -> None:
    plain, again = (
        measured(tmp_path, "--config-file", config_file, "--train", how)["stages"]
        for how in ("--no-checkpointing", "--checkpointing")
    )
    for stage in ("fusion", "DyConv"):
        assert again[stage]["product_flops"] == plain[stage]["product_flops"]
    assert again["backward"]["product_flops"] > plain["backward"]["product_flops"]


def test_a_training_step_has_a_backward_pass_and_an_update(
    config_file: str, tmp_path: Path
) -> None:
    report = measured(tmp_path, "--config-file", config_file, "--train", "--checkpointing")
    assert {"backward", "optimizer"} <= report["stages"].keys()
    forward = sum(report["stages"][stage]["product_flops"] for stage in ("backbone", "fusion"))
    assert report["stages"]["backward"]["product_flops"] > forward > 0


def test_two_results_are_compared_stage_by_stage(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(tmp_path, "--config-file", config_file)
    path = str(tmp_path / "result.json")
    capsys.readouterr()
    assert benchmark.main(["--compare", path, path]) == 0
    table = capsys.readouterr().out
    assert "DyConv" in table
    assert "1.00" in table


def attentions(dropout: float = 0.0) -> tuple[BiAttention, benchmark.TextbookBiAttention]:
    torch.manual_seed(0)
    absorbed = BiAttention(
        visual_dim=6, language_dim=10, attention_dim=16, num_heads=4, dropout=dropout
    )
    for linear in absorbed.children():
        torch.nn.init.normal_(linear.bias)
    return absorbed, benchmark.TextbookBiAttention(absorbed)


def test_the_textbook_fusion_computes_what_the_model_does() -> None:
    absorbed, textbook = attentions()
    inputs = (
        torch.randn(2, 13, 6, requires_grad=True),
        torch.randn(2, 5, 10, requires_grad=True),
    )
    scale = torch.rand(6, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    leaves = [*inputs, scale, *absorbed.parameters()]
    outputs = [attention(*inputs, mask, scale) for attention in (absorbed, textbook)]
    gradients = [
        torch.autograd.grad(sum(out.square().sum() for out in output), leaves) for output in outputs
    ]
    for ours, expected in zip(outputs[0], outputs[1], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_the_textbook_fusion_takes_the_place_of_the_models() -> None:
    model = tiny_model()
    benchmark.use_textbook_fusion(model)
    kinds = {type(block.fusion.attention) for block in model.fused_head.blocks}
    assert kinds == {benchmark.TextbookBiAttention}


def test_a_head_without_fusion_has_no_textbook_form() -> None:
    model = tiny_model("MODEL.FUSED_HEAD.NAME", "DynamicHead")
    with pytest.raises(ValueError, match="not DynamicHead"):
        benchmark.use_textbook_fusion(model)


def test_an_attention_that_computes_more_has_no_textbook_form() -> None:
    model = tiny_model()
    model.fused_head.blocks[0].fusion.attention.__class__ = EvidentBiAttention
    with pytest.raises(ValueError, match="with EvidentBiAttention"):
        benchmark.use_textbook_fusion(model)


def test_a_detector_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = Path(benchmark.__file__).parents[1] / "configs" / "two_stage" / "drawn_small.yaml"
    args = benchmark.get_parser().parse_args(["--config-file", str(config), *SMALL])
    with pytest.raises(ValueError, match="builds a OpenVocabularyRCNN; only the stages"):
        benchmark.run(args, Console(file=io.StringIO()))


@pytest.mark.parametrize("count", [1, 80, 81, 1203])
def test_as_many_names_are_asked_as_wanted(count: int) -> None:
    names = benchmark.class_names(count)
    assert len(names) == len(set(names)) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-classes", "5000"], "--num-classes is 5000; 1 to 1203"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--image-size", "8", "800"], r"--image-size is \(8, 800\)"),
    ],
)
def test_impossible_settings_are_named(
    config_file: str, arguments: list[str], message: str
) -> None:
    args = benchmark.get_parser().parse_args(["--config-file", config_file, *arguments])
    with pytest.raises(ValueError, match=message):
        benchmark.run(args, Console(file=io.StringIO()))


def test_a_file_that_is_no_result_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"images": []}')
    assert benchmark.main(["--compare", str(path), str(path)]) == 2
    assert "other.json is no result of --json" in capsys.readouterr().err
