from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from helpers.models import tiny_cfg, tiny_model
from rich.console import Console

from glipv2_cli import benchmark
from glipv2_cli import main as cli
from glipv2_d2.modeling.fusion.bi_attention import BiAttention, bi_attention, text_attention

SMALL = ["--image-size", "64", "96", "--num-classes", "3", "--warmup", "1", "--repeats", "2"]


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg().dump())
    return str(path)


@pytest.fixture(autouse=True)
def _keep_allocator_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: False)
    tasks = dict.fromkeys(RATES, lambda: 1.0)
    monkeypatch.setattr("glipv2_d2.profiling.benchmark.machine_tasks", lambda *_: tasks)


RATES = ("product", "convolution", "copy")


def measure(tmp_path: Path, *arguments: str) -> dict:
    path = tmp_path / "result.json"
    assert cli.main(["benchmark", *arguments, *SMALL, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_inference_is_measured_by_stage(config_file: str, tmp_path: Path) -> None:
    report = measure(tmp_path, "--config", config_file)
    stages = {"preprocess", "text", "backbone", "FPN", "fusion", "language layers", "DyConv"}
    assert stages | {"heads", "post-processing, losses", "other"} == report["stages"].keys()
    shares = sum(stage["product_flops"] for stage in report["stages"].values())
    assert 0 < shares == report["total"]["product_flops"]
    assert report["peak_bytes"] > 0
    assert report["rates"].keys() == set(RATES)


def test_mask_head_is_a_stage(config_file: str, tmp_path: Path) -> None:
    masks = ("MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", "1")
    # Scores of random weights are below the default.
    threshold = ("MODEL.GROUNDING.SCORE_THRESH", "0.0")
    path = tmp_path / "result.json"
    arguments = ["--config", config_file, *SMALL, "--json", str(path)]
    assert cli.main(["benchmark", *arguments, "--opts", *masks, *threshold]) == 0
    assert json.loads(path.read_text())["stages"]["masks"]["convolution_flops"] > 0


def test_a_profile_has_the_operators_with_the_most_time_of_their_own(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = measure(tmp_path, "--config", config_file, "--operators", "2")
    times = {name: x["self_s"] for name, x in report["operators"].items()}
    slowest = sorted(times, key=lambda name: -times[name])
    printed = capsys.readouterr().out
    assert f"{len(slowest) - 2} others" in printed
    assert all(f" {name} " in printed for name in slowest[:2])
    assert f" {slowest[2]} " not in printed
    assert report["operators"]["add"]["calls"] > 0
    assert measure(tmp_path, "--config", config_file)["operators"] == {}


def test_recomputation_of_checkpointing_is_part_of_the_backward_pass(
    config_file: str, tmp_path: Path
) -> None:
    plain, checkpointed = (
        measure(tmp_path, "--config", config_file, "--train", option)["stages"]
        for option in ("--no-checkpointing", "--checkpointing")
    )
    for stage in ("fusion", "DyConv"):
        assert checkpointed[stage]["product_flops"] == plain[stage]["product_flops"]
    assert checkpointed["backward"]["product_flops"] > plain["backward"]["product_flops"]


def test_training_step_has_backward_and_optimizer_stages(config_file: str, tmp_path: Path) -> None:
    report = measure(tmp_path, "--config", config_file, "--train", "--checkpointing")
    assert {"backward", "optimizer"} <= report["stages"].keys()
    forward = sum(report["stages"][stage]["product_flops"] for stage in ("backbone", "fusion"))
    assert report["stages"]["backward"]["product_flops"] > forward > 0


def test_two_reports_are_compared_by_stage(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tmp_path, "--config", config_file)
    path = str(tmp_path / "result.json")
    capsys.readouterr()
    assert cli.main(["benchmark", "--compare", path, path]) == 0
    table = capsys.readouterr().out
    assert "DyConv" in table
    assert "1.00" in table


def test_textbook_fusion_replaces_the_kernel() -> None:
    model = tiny_model()
    benchmark.use_textbook_fusion(model)
    attentions = [block.fusion.attention for block in model.fused_head.blocks]
    assert {x.function for x in attentions} == {bi_attention}
    assert {x.text_function for x in attentions} == {text_attention}


def test_head_without_fusion_has_no_textbook_form() -> None:
    model = tiny_model("MODEL.FUSED_HEAD.NAME", "DynamicHead")
    with pytest.raises(ValueError, match="not DynamicHead"):
        benchmark.use_textbook_fusion(model)


def test_subclass_of_bi_attention_has_no_textbook_form() -> None:
    class OtherBiAttention(BiAttention):
        pass

    model = tiny_model()
    model.fused_head.blocks[0].fusion.attention = OtherBiAttention(
        visual_dim=16, language_dim=16, attention_dim=8, num_heads=2, dropout=0.0
    )
    with pytest.raises(ValueError, match="with OtherBiAttention"):
        benchmark.use_textbook_fusion(model)


def test_other_meta_architecture_is_rejected(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "two_stage" / "drawn_small.yaml"
    args = benchmark.get_parser().parse_args(["--config", str(config), *SMALL])
    with pytest.raises(ValueError, match="builds a OpenVocabularyRCNN; only the stages of GLIPv2"):
        benchmark.run(args, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-classes", "20000"], "number of classes is 20000; it must be 1 to 13231"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--image-size", "8", "800"], r"--image-size is \(8, 800\)"),
    ],
)
def test_invalid_settings_are_rejected(
    config_file: str, arguments: list[str], message: str
) -> None:
    args = benchmark.get_parser().parse_args(["--config", config_file, *arguments])
    with pytest.raises(ValueError, match=message):
        benchmark.run(args, Console(file=io.StringIO()))


def test_file_of_another_format_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"images": []}')
    assert cli.main(["benchmark", "--compare", str(path), str(path)]) == 2
    assert "other.json is not a result of --json" in capsys.readouterr().err
