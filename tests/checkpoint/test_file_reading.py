from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from glipv2_d2.checkpoint import Layout, detect_layout, read_checkpoint

WEIGHTS = {"fused_head.scale": torch.ones(300)}


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_bare_state_dict_is_returned_under_model(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "bare.pth")
    assert read_checkpoint(tmp_path / "bare.pth").keys() == {"model"}


def test_other_entries_are_kept(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "iteration": 7, "model_ema": WEIGHTS}, tmp_path / "full.pth")
    content = read_checkpoint(tmp_path / "full.pth")
    assert content["iteration"] == 7
    assert content["model"].keys() == WEIGHTS.keys()


def test_a_file_that_could_execute_code_raises_an_error(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "extra": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"hostile\.pth.*system.*weights_only=False"):
        read_checkpoint(tmp_path / "hostile.pth")


@pytest.mark.parametrize("content", [None, b"", b"hello world", {"model": 1}])
def test_the_error_names_the_key_of_the_config(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match="MODEL.PART.WEIGHTS") as error:
        read_checkpoint(path, key="MODEL.PART.WEIGHTS")
    assert "MODEL.WEIGHTS" not in str(error.value)
    assert "last_checkpoint" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"hello world\n", "not a file of torch.save"),
        (bytes(range(256)), "not a file of torch.save"),
        (b"", "an empty file"),
    ],
)
def test_the_error_describes_a_file_that_is_not_a_checkpoint(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{kind}(.|\n)*MODEL.WEIGHTS") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_file_raises_an_error(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"cut\.pth.*damaged.*Download the file again"):
        read_checkpoint(path)


def test_a_missing_file_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*MODEL\.WEIGHTS"):
        read_checkpoint(tmp_path / "nowhere.pth")


def test_a_directory_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"meta": "x", "state_dict": {}}, "meta, state_dict"),
        ({"model": [1, 2]}, "a list"),
        ({}, "but nothing"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_the_error_names_content_without_a_state_dict(
    tmp_path: Path, content: Any, found: str
) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=found):
        read_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["module.backbone.body.norm1.bias", "module.rpn.head.bias0"], Layout.GLIP),
        (["rpn.head.bias0", "language_backbone.body.model.embeddings.LayerNorm.bias"], Layout.GLIP),
        (["patch_embed.proj.weight", "layers.0.blocks.0.norm1.bias", "head.bias"], Layout.SWIN),
        (["backbone.bottom_up.patch_embed.proj.weight", "fused_head.x"], Layout.NATIVE),
        (["conv1.weight"], Layout.NATIVE),
    ],
)
def test_layouts_are_detected_from_parameter_names(names: list[str], layout: Layout) -> None:
    assert detect_layout(names) is layout
