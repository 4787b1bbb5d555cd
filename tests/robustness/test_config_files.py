"""Config files that mean harm or are damaged: no code runs, and the error names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2 import model_zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glipv2_d2.engine.setup import load_config
from glipv2_d2.trust import UNSAFE_VARIABLE

TAGS = {
    "apply": "!!python/object/apply:os.mkdir [{folder}]",
    "eval": "!!python/object/apply:eval [\"__import__('os').mkdir('{folder}')\"]",
    "new": "!!python/object/new:os.mkdir [{folder}]",
    "name": "!!python/name:os.mkdir",
    "module": "!!python/module:os",
    "tuple": "!!python/tuple [1, 2]",
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("inherited", ["no", "base", "list of bases"])
@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
def test_python_tags_are_refused(tmp_path: Path, tag: str, inherited: str) -> None:
    made = tmp_path / "made"
    path = write(tmp_path / "hostile.yaml", f"SEED: {tag.format(folder=made)}\n")
    if inherited != "no":
        base = "hostile.yaml" if inherited == "base" else "[hostile.yaml]"
        path = write(tmp_path / "config.yaml", f"_BASE_: {base}\nSEED: 1\n")
    with pytest.raises(ValueError, match=rf"could execute code.*(.|\n)*{UNSAFE_VARIABLE}=1") as e:
        load_config(path)
    assert str(path) in str(e.value) and "hostile.yaml" in str(e.value)
    assert not made.exists()


def test_python_tags_are_read_with_the_unsafe_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "config.yaml", "SOLVER:\n  STEPS: !!python/tuple [3, 4]\n")
    monkeypatch.setenv(UNSAFE_VARIABLE, "1")
    assert load_config(path).SOLVER.STEPS == (3, 4)


def test_expressions_in_detectron2s_own_files_are_read(tmp_path: Path) -> None:
    base = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg = load_config(write(tmp_path / "config.yaml", f"_BASE_: {base}\nSEED: 4\n"))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][1] == pytest.approx(32 * 2 ** (1 / 3))


def test_a_folder_named_like_detectron2_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages" / "detectron2" / "model_zoo"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="could execute code"):
        load_config(write(folder / "config.yaml", "SEED: !!python/name:os.getpid\n"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "~", "5", "_BASE_: config.yaml", "_BASE_: 5", "_BASE_: {a: 1}", "_BASE_: [~]"),
        *("MODEL: 5", "SEED:\n  A: 1", "1: 2", "~: {a: 1}", "<<: 5", "SEED: 1\n---\nSEED: 2"),
        *("MODEL: " + "{a: " * 2000 + "1" + "}" * 2000, "x" * 100_000 + ": 1", "a: &a\n  b: *a"),
        *("SEED: 2020-01-01", "SEED: [", "SEED: !unknown 1", "_BASE_: base.yaml\nSEED: {A: 1}"),
    ],
)
def test_a_file_that_is_not_a_config_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    write(tmp_path / "base.yaml", "SEED: 1")
    with pytest.raises(ValueError, match=r"config\.yaml'") as caught:
        load_config(write(tmp_path / "config.yaml", text))
    assert len(str(caught.value)) < 1500


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config(write(tmp_path / "config.yaml", "_BASE_: nowhere.yaml\n"))


@pytest.mark.parametrize("base", [".", "http://127.0.0.1:9/base.yaml", "SEED: 1" + "0" * 5000])
def test_a_base_that_cannot_be_read_is_an_error_that_names_the_config(
    tmp_path: Path, base: str
) -> None:
    text = base if base.startswith("SEED") else f"_BASE_: {base}\n"
    with pytest.raises(ValueError, match=r"config file '.*config\.yaml': "):
        load_config(write(tmp_path / "config.yaml", text))


def test_bases_that_repeat_each_other_take_no_time(tmp_path: Path) -> None:
    """2 ** 30 files to read, of 31."""
    for i in range(30):
        write(tmp_path / f"{i}.yaml", f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    write(tmp_path / "30.yaml", "SEED: 1\n")
    with pytest.raises(ValueError, match=r"0\.yaml': more than 100 base files"):
        load_config(tmp_path / "0.yaml")


def test_configs_that_are_bases_of_each_other_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "other.yaml", "_BASE_: config.yaml\n")
    with pytest.raises(ValueError, match=r"config\.yaml': more than 100 base files"):
        load_config(write(tmp_path / "config.yaml", "_BASE_: other.yaml\n"))


def test_aliases_that_repeat_each_other_take_no_time(tmp_path: Path) -> None:
    """9 ** 12 keys in one kilobyte."""
    nine = [", ".join(f"k{j}: *a{i}" for j in range(9)) for i in range(12)]
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{{keys}}}" for i, keys in enumerate(nine, 1))]
    with pytest.raises(ValueError, match=r"key 'a0\.x' does not exist"):
        load_config(write(tmp_path / "config.yaml", "\n".join(lines)))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\x00" + content)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(path)
