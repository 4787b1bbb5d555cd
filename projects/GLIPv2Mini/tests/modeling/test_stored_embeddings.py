from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from helpers.models import tiny_cfg
from torch import Tensor

from glipv2_d2.text.model_files import CACHE_VARIABLE
from glipv2_mini.modeling.stored_embeddings import (
    FOLDER,
    StoredEmbeddings,
    encoder_fingerprint,
)

NAMES = ["cat", "coffee cup"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path / FOLDER


def lengths() -> Callable[[Sequence[str]], Tensor]:
    return lambda names: torch.tensor([[len(name), 0.1] for name in names])


def unavailable() -> Callable[[Sequence[str]], Tensor]:
    raise AssertionError("the encoder was built")


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_list_is_embedded_once(cache: Path) -> None:
    first = StoredEmbeddings(lengths, "encoder")(NAMES)
    assert torch.equal(first, torch.tensor([[3.0, 0.1], [10.0, 0.1]]))
    assert torch.equal(StoredEmbeddings(unavailable, "encoder")(NAMES), first)


@pytest.mark.parametrize(
    ("fingerprint", "names"),
    [("other", NAMES), ("encoder", NAMES[::-1]), ("encoder", NAMES[:1]), ("encoder", ["Cat"])],
)
def test_another_encoder_or_list_is_embedded_again(
    cache: Path, fingerprint: str, names: list[str]
) -> None:
    StoredEmbeddings(lengths, "encoder")(NAMES)
    with pytest.raises(AssertionError, match="was built"):
        StoredEmbeddings(unavailable, fingerprint)(names)


def test_lists_share_an_encoder(cache: Path) -> None:
    built = []

    def build() -> Callable[[Sequence[str]], Tensor]:
        built.append(1)
        return lengths()

    embed = StoredEmbeddings(build, "encoder")
    embed(NAMES)
    embed(["dog"])
    assert built == [1]


@pytest.mark.parametrize("damage", ["cut", "text", "other rows", "nan"])
def test_a_damaged_file_is_replaced(cache: Path, damage: str) -> None:
    embeddings = StoredEmbeddings(lengths, "encoder")(NAMES)
    path = only_file(cache)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-4])
    elif damage == "text":
        path.write_text("embeddings")
    else:
        StoredEmbeddings(lambda: lambda _: torch.zeros(3, 2), "other")(NAMES)
        (other,) = set(cache.iterdir()) - {path}
        if damage == "nan":
            StoredEmbeddings(lambda: lambda _: torch.full((2, 2), torch.nan), "third")(NAMES)
            (other,) = set(cache.iterdir()) - {path, other}
        path.write_bytes(other.read_bytes())
    assert torch.equal(StoredEmbeddings(lengths, "encoder")(NAMES), embeddings)
    assert path.read_bytes() == content


def test_without_a_place_to_write_lists_are_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert StoredEmbeddings(lengths, "encoder")(NAMES).shape == (2, 2)


def test_without_a_home_directory_lists_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~no-such-user").expanduser())
    assert StoredEmbeddings(lengths, "encoder")(NAMES).shape == (2, 2)


def test_an_encoder_without_a_fingerprint_is_not_stored(cache: Path) -> None:
    StoredEmbeddings(lengths, "")(NAMES)
    assert not cache.exists()


@pytest.fixture
def encoder_cfg(tmp_path: Path) -> CfgNode:
    """Of an encoder in a folder of its own."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    cfg = tiny_cfg()
    cfg.MODEL.LANGUAGE_BACKBONE.MODEL = cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS = str(tmp_path)
    return cfg


def test_the_fingerprint_changes_with_weights_and_settings(encoder_cfg: CfgNode) -> None:
    first = encoder_fingerprint(encoder_cfg)
    assert first == encoder_fingerprint(encoder_cfg.clone())
    encoder_cfg.MODEL.PROMPT.MAX_TOKENS += 1
    second = encoder_fingerprint(encoder_cfg)
    (Path(encoder_cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS) / "model.safetensors").write_bytes(b"others")
    assert len({first, second, encoder_fingerprint(encoder_cfg)}) == 3


def test_an_encoder_of_the_hub_has_no_fingerprint(encoder_cfg: CfgNode) -> None:
    encoder_cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS = "user/encoder"
    assert encoder_fingerprint(encoder_cfg) == ""
