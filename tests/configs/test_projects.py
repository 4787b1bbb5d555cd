"""The recipes of projects/, at full size."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from helpers.no_memory import parameters_without_memory

from glipv2_d2.data import builtin  # noqa: F401 - registers the datasets
from glipv2_d2.engine.setup import load_config

ROOT = Path(__file__).parents[2]
SIZES = {"_t": 231_759_662, "_b": 321_851_748, "_l": 430_401_824}
WIDTH, VOCAB_SIZE, NUM_ANSWERS = 768, 30_522, 3129
LINEAR = WIDTH * WIDTH + WIDTH
HEADS = {
    # The attention pooling, two layers, and the classifier.
    "VQA": WIDTH + 1 + 2 * LINEAR + NUM_ANSWERS * WIDTH + NUM_ANSWERS,
    # A layer, its norm, and the decoder of masked language modelling.
    "Captioning": LINEAR + 2 * WIDTH + VOCAB_SIZE * (WIDTH + 1),
}
PROJECTS = sorted(
    path.relative_to(ROOT).as_posix()
    for name in HEADS
    for path in ROOT.glob(f"projects/{name}/configs/*")
)


@pytest.fixture(params=PROJECTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cfg(name: str, tmp_path: Path) -> CfgNode:
    opts = ["MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    answers = tmp_path / "answers.txt"
    answers.write_text("".join(f"{i}\n" for i in range(NUM_ANSWERS)))
    if load_config(ROOT / name).MODEL.ANSWER.FILE:
        opts += ["MODEL.ANSWER.FILE", str(answers)]
    return load_config(ROOT / name, opts)


def test_header_has_the_command(name: str) -> None:
    header = itertools.takewhile(lambda line: line[0] == "#", (ROOT / name).open())
    assert any(f"tools/train_net.py --config-file {name}" in line for line in header)


def test_the_network_is_glipv2_with_an_additional_head(name: str, cfg: CfgNode) -> None:
    with parameters_without_memory():
        model = build_model(cfg)
    head = HEADS[name.split("/")[1]]
    assert sum(p.numel() for p in model.parameters()) == SIZES[Path(name).stem[-2:]] + head


def test_datasets_are_registered(cfg: CfgNode) -> None:
    custom = {entry["name"] for entry in cfg.DATASETS.CUSTOM}
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog) | custom


def test_settings_that_the_paper_omits_are_those_of_fiber(name: str, cfg: CfgNode) -> None:
    """10 epochs of batches of 512, 10 % warm-up, a linear decay to 0, fusion x 5 and own heads."""
    task = name.split("/")[1]
    num_records = {"VQA": 443_757 + 214_354, "Captioning": 566_747}[task]
    solver = cfg.SOLVER
    assert round(10 * num_records / solver.IMS_PER_BATCH) == pytest.approx(solver.MAX_ITER, abs=1)
    assert pytest.approx(solver.MAX_ITER / 10, abs=1) == solver.WARMUP_ITERS
    assert (solver.LR_SCHEDULER_NAME, solver.BASE_LR_END) == ("WarmupLinearLR", 0)
    assert solver.FUSION_LR_FACTOR == 5
    assert {"VQA": 50, "Captioning": 5}[task] == solver.TEXT_HEAD_LR_FACTOR


@pytest.mark.parametrize("folder", ["VQA", "Captioning"])
def test_the_readme_refers_to_existing_files(folder: str) -> None:
    text = (ROOT / "projects" / folder / "README.md").read_text()
    words = text.replace("`", " ").split()
    paths = {word for word in words if word.startswith(("tools/", "projects/"))}
    assert paths and all((ROOT / path).exists() for path in paths)
