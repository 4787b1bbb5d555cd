"""Saved models: config, safetensors and card, in folders and on a local server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from helpers.hub_server import Hub, serve, use_hub
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

from glipv2_d2 import Predictor, add_glipv2_config
from glipv2_d2.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE


class OneBox(nn.Module):
    """A box as wide as its weight."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor([1.0]))

    def forward(self, inputs):
        instances = Instances((inputs[0]["height"], inputs[0]["width"]))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, float(self.width), 2.0]]))
        instances.scores = torch.tensor([0.5])
        instances.pred_classes = torch.tensor([0])
        return [{"instances": instances}] * len(inputs)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    META_ARCH_REGISTRY.register(OneBox)
    yield
    META_ARCH_REGISTRY._obj_map.pop("OneBox")


def make_predictor(*opts: object) -> Predictor:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OneBox"
    cfg.INPUT.MIN_SIZE_TEST = 123
    cfg.OUTPUT_DIR = "/home/me/output"
    predictor = Predictor(cfg, device="cpu", opts=opts)
    predictor.model.width.data.fill_(7)
    return predictor


def width_of_box(predictor: Predictor) -> float:
    prediction = predictor.predict(Image.new("RGB", (20, 20)), classes=["cat"])
    return prediction.instances.pred_boxes.tensor[0, 2].item()


def test_saved_model_predicts_as_before_with_its_config(tmp_path: Path) -> None:
    make_predictor().save_pretrained(tmp_path / "model")
    predictor = Predictor.from_pretrained(tmp_path / "model", device="cpu")
    assert width_of_box(predictor) == 7
    assert predictor.cfg.INPUT.MIN_SIZE_TEST == 123


def test_saved_config_has_no_path_of_this_machine(tmp_path: Path) -> None:
    make_predictor().save_pretrained(tmp_path)
    assert "/home/me" not in (tmp_path / CONFIG_FILE).read_text()


def test_card_is_valid_and_not_overwritten(tmp_path: Path) -> None:
    make_predictor().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / CARD_FILE)
    assert card.data.library_name == "glipv2_d2"
    assert card.data.pipeline_tag == "zero-shot-object-detection"
    (tmp_path / CARD_FILE).write_text("mine")
    make_predictor().save_pretrained(tmp_path)
    assert (tmp_path / CARD_FILE).read_text() == "mine"


def test_rounded_weights_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rounded to bf16"):
        make_predictor("TEST.PRECISION", "bf16").save_pretrained(tmp_path)


def test_push_and_load_through_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Hub()) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        url = make_predictor().push_to_hub("user/model", token="hf_token")
        assert url.startswith(f"{hub.url}/user/model/commit/")
        assert set(hub.repositories["user/model"]["main"]) == {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE}
        assert b'from_pretrained("user/model")' in hub.repositories["user/model"]["main"][CARD_FILE]
        assert width_of_box(Predictor.from_pretrained("user/model", device="cpu")) == 7


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        Predictor.from_pretrained(tmp_path)


def test_config_of_somebody_else_runs_no_code(tmp_path: Path) -> None:
    make_predictor().save_pretrained(tmp_path)
    proof = tmp_path / "proof"
    (tmp_path / CONFIG_FILE).write_text(
        f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {proof}']"
    )
    with pytest.raises(ValueError, match="not plain YAML"):
        Predictor.from_pretrained(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_BASE_": "/etc/passwd"}, "without _BASE_"),
        ({"MODEL": {"BACKBONES": 1}}, "'MODEL.BACKBONES' does not exist; did you mean"),
        ({"MODEL": {"DEVICE": 1.5}}, "config file .* MODEL.DEVICE"),
        (["MODEL"], "must be a mapping"),
        ({"MODEL": 3}, "config file"),
    ],
)
def test_invalid_config_is_named(tmp_path: Path, content: object, message: str) -> None:
    make_predictor().save_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        Predictor.from_pretrained(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    make_predictor().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"\x08" + bytes(20))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Predictor.from_pretrained(tmp_path)
