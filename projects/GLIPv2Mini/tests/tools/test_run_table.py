"""run_table.py runs missing cells, keeps finished ones and averages over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_table
import yaml
from detectron2.config import CfgNode

# A stand-in for train_net.py: the AP is ten times the learning rate plus the seed.
TRAIN_NET = """
import json, pathlib, sys
opts = dict(zip(sys.argv[4::2], sys.argv[5::2]))
if float(opts["SOLVER.BASE_LR"]) < 0:
    sys.exit("a negative rate")
folder = pathlib.Path(opts["OUTPUT_DIR"])
with open(folder / "calls", "a") as file:
    file.write(sys.argv[3] + "\\n")
ap = 10 * float(opts["SOLVER.BASE_LR"]) + int(opts["SEED"])
(folder / "results.json").write_text(json.dumps({"mini_stamps_seen": {"bbox": {"AP": ap}}}))
"""


def table(*rows: dict) -> dict:
    return {
        "title": "A table",
        "config": "projects/GLIPv2Mini/configs/glipv2_mini.yaml",
        "seeds": [1, 3],
        "rows": list(rows),
        "columns": [{"name": "seen AP", "dataset": "mini_stamps_seen", "metric": "bbox/AP"}],
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "train_net.py"
    script.write_text(TRAIN_NET)
    monkeypatch.setattr(run_table, "TRAIN_NET", script)

    def run(content: dict) -> str:
        file = tmp_path / "table.yaml"
        file.write_text(yaml.safe_dump(content))
        results, output = tmp_path / "results.json", tmp_path / "runs"
        monkeypatch.setattr(
            "sys.argv",
            ["run_table", str(file), "--results", str(results), "--output", str(output)],
        )
        run_table.main()
        return results.with_suffix(".md").read_text()

    return run


SLOW = {"name": "slow", "opts": ["SOLVER.BASE_LR", 0.1]}
FAST = {"name": "fast", "opts": ["SOLVER.BASE_LR", 2.0]}


def calls(tmp_path: Path) -> list[str]:
    return [line for file in tmp_path.glob("runs/*/calls") for line in file.read_text().split()]


def test_each_row_has_mean_and_range_over_the_seeds(run) -> None:
    text = run(table(SLOW, FAST))
    assert "| slow | 3.0 (2.0-4.0) | 2 |" in text
    assert "| fast | 22.0 (21.0-23.0) | 2 |" in text


def test_finished_runs_are_kept(run, tmp_path: Path) -> None:
    run(table(SLOW))
    run(table(SLOW, FAST))
    assert len(calls(tmp_path)) == 4


def test_a_row_with_changed_options_runs_again(run, tmp_path: Path) -> None:
    run(table(SLOW))
    text = run(table({**SLOW, "opts": ["SOLVER.BASE_LR", 0.2]}))
    assert "| slow | 4.0 (3.0-5.0) | 2 |" in text
    assert len(json.loads((tmp_path / "results.json").read_text())) == 4


def test_a_row_without_training_is_only_evaluated(run, tmp_path: Path) -> None:
    run(table({**SLOW, "train": False}))
    assert calls(tmp_path) == ["--eval-only"] * 2


def test_a_row_may_have_some_columns_only(run) -> None:
    content = table(SLOW, {**FAST, "columns": []})
    other = {"name": "novel AP", "dataset": "mini_stamps_novel", "metric": "bbox/AP"}
    content["columns"].append(other)
    content["rows"][0]["columns"] = ["seen AP"]
    text = run(content)
    assert "| slow | 3.0 (2.0-4.0) | - | 2 |" in text
    assert "| fast | - | - | 2 |" in text


def test_an_unknown_column_raises(run) -> None:
    with pytest.raises(SystemExit, match=r"'slow' names the columns \['AP9'\]"):
        run(table({**SLOW, "columns": ["AP9"]}))


def test_the_seed_is_substituted_in_options(run) -> None:
    text = run(table({"name": "own", "opts": ["SOLVER.BASE_LR", "{seed}.0"]}))
    assert "| own | 22.0 (11.0-33.0) | 2 |" in text


def test_a_failed_run_names_its_log_and_keeps_the_others(run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"'bad', seed 1, failed: see .*command.log"):
        run({**table(SLOW, {"name": "bad", "opts": ["SOLVER.BASE_LR", -1.0]}), "seeds": [1]})
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1


def test_a_table_without_columns_raises(run) -> None:
    content = table(SLOW)
    del content["columns"]
    with pytest.raises(SystemExit, match="columns"):
        run(content)


def test_the_key_of_a_run_depends_on_values_that_differ_from_the_defaults() -> None:
    defaults = CfgNode({"A": 1, "B": {"C": 2, "D": 3}})
    cfg = CfgNode({"A": 1, "B": {"C": 5, "D": 3}, "E": 4})
    assert run_table.choices(cfg, defaults) == {"B": {"C": 5}, "E": 4}
    assert run_table.choices(defaults, CfgNode({**defaults, "NEW": 0})) == {}
