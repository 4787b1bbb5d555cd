"""The blocks of docs/detectron2.md run as one script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.models import COARSE_LEVELS, tiny_cfg, tiny_model
from helpers.pipelines import for_two_steps

from glipv2_d2 import add_glipv2_config
from glipv2_d2.checkpoint import read_checkpoint, save_weights
from glipv2_d2.data.drawn import base_cutouts, write_drawn

DOCUMENT = Path(__file__).parents[2] / "docs/detectron2.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files that the page names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("train", "val")):
        write_drawn(
            tmp_path / "my",
            split=split,
            num_images=2,
            size=64,
            seed=seed,
            load_cutouts=base_cutouts,
        )
    cfg = for_two_steps(tiny_cfg("INPUT.MIN_SIZE_TEST", 64, *COARSE_LEVELS), tmp_path)
    known = get_cfg()
    add_glipv2_config(known)
    values = of_keys(yaml.safe_load(cfg.dump()), known)
    (tmp_path / "my_model.yaml").write_text(yaml.safe_dump(values))
    save_weights(tiny_model(*COARSE_LEVELS), tmp_path / "my_model.pth")
    yield tmp_path
    for name in ("my_train", "my_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def of_keys(values: dict[str, Any], known: CfgNode) -> dict[str, Any]:
    """Without the keys of installed projects."""
    return {
        key: of_keys(value, known[key]) if isinstance(known[key], CfgNode) else value
        for key, value in values.items()
        if key in known
    }


def test_every_block_of_the_page_runs(folder: Path) -> None:
    text = DOCUMENT.read_text(encoding="utf8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```") // 2 == 11
    script: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), script)
    assert set(script["outputs"][0]["instances"].pred_classes.tolist()) <= {0, 1}
    assert script["instances"].image_size == (64, 64)
    assert "AP" in script["results"]["bbox"]
    for output in ("detectron2", "glipv2"):
        assert (folder / "output" / output / "model_final.pth").is_file()
    trained = read_checkpoint(folder / "output/my_loop.pth")["model"]
    before = read_checkpoint(folder / "my_model.pth")["model"]
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[name], before[name]) for name in before)
