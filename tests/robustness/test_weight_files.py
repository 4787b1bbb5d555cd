"""Damaged and hostile files of weights: an error that names the file, or the right values."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from glipv2_d2.checkpoint import GLIPv2Checkpointer, load_weights, read_checkpoint, save_state
from glipv2_d2.trust import UNSAFE_VARIABLE

WEIGHTS = {"weight": torch.arange(600.0).reshape(2, 300), "bias": torch.tensor([0.5, -0.5])}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}
fast = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def model_of(weights: dict[str, Tensor] = WEIGHTS) -> nn.Module:
    """A model with these names and shapes; all zero."""
    model = nn.Module()
    for name, value in weights.items():
        model.register_buffer(name, torch.zeros_like(value))
    return model


def load(path: Path | str) -> nn.Module:
    model = model_of()
    GLIPv2Checkpointer(model).load(str(path))
    return model


def save(content: Any, path: Path) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


def pickled(content: Any, path: Path, protocol: int = 4) -> bytes:
    path.write_bytes(pickle.dumps(content, protocol))
    return path.read_bytes()


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """The result and "", or None and the message of a ValueError."""
    try:
        return function(), ""
    except ValueError as error:
        return None, str(error)


def is_unchanged(weights: dict[str, Any]) -> bool:
    return weights.keys() == WEIGHTS.keys() and all(
        torch.equal(value, WEIGHTS[name]) for name, value in weights.items()
    )


# Damage


def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    content = save({"model": WEIGHTS}, tmp_path / "whole.pth")
    path = tmp_path / "flipped.pth"
    generator = random.Random(0)
    num_refused = 0
    for _ in range(150):
        position, bit = generator.randrange(len(content)), generator.randrange(8)
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        weights, error = attempt(lambda: read_checkpoint(path)["model"])
        # In the headers are bits, such as those of the date, that mean nothing to us.
        assert str(path) in error or is_unchanged(weights), (position, bit)
        num_refused += bool(error)
    assert num_refused > 75


def test_a_flipped_bit_of_a_number_is_named_as_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "flipped.pth"
    content = bytearray(save({"model": WEIGHTS}, path))
    content[content.index(WEIGHTS["weight"].numpy().tobytes()[400:440]) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.pth.*damaged.*checksum.*data/0 is wrong"):
        load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_any_smaller_size_is_named_as_damaged(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for size in [*range(1, len(content), 41), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.pth.*damaged.*Download the file again"):
            read_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_of_any_smaller_size_is_named_as_damaged(tmp_path: Path, protocol: int) -> None:
    content = pickled({"model": ARRAYS, "__author__": "x"}, tmp_path / "cut.pkl", protocol)
    for size in [*range(1, len(content), 41), len(content) - 1]:
        (tmp_path / "cut.pkl").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.pkl.*damaged.*Download the file again"):
            load(tmp_path / "cut.pkl")


@fast
@given(content=st.binary(min_size=1, max_size=200), suffix=st.sampled_from([".pth", ".pkl"]))
def test_any_bytes_are_an_error_that_names_the_file(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"bytes{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bytes"):
        load(path)


def test_bytes_replaced_in_a_pickle_are_an_error_or_numbers_of_the_right_shape(
    tmp_path: Path,
) -> None:
    """A pickle has no checksums: what can be noticed is what is no array any more."""
    content = pickled({"model": ARRAYS, "__author__": "x"}, tmp_path / "whole.pkl")
    path = tmp_path / "damaged.pkl"
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        # Most bytes are numbers; the others matter here.
        damaged[generator.choice([*range(300), -1, -2, -3])] = generator.randrange(256)
        path.write_bytes(damaged)
        model, error = attempt(lambda: load(path))
        assert str(path) in error or all(v.isfinite().all() for v in model.state_dict().values())


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize(
    ("value", "defect"),
    [(float("nan"), "nan"), (float("inf"), "infinite"), (float("-inf"), "infinite")],
)
def test_a_tensor_with_a_number_that_is_not_finite_is_named(
    tmp_path: Path, value: float, defect: str, suffix: str
) -> None:
    weights = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    weights["weight"][1, 77] = value
    path = tmp_path / f"bad{suffix}"
    if suffix == ".pth":
        save({"model": weights}, path)
    elif suffix == ".safetensors":
        save_file(weights, path)
    else:
        pickled({"model": {n: v.numpy() for n, v in weights.items()}, "__author__": "x"}, path)
    with pytest.raises(ValueError, match=rf"bad\{suffix}' are damaged: weight has {defect}"):
        load(path)


def tensor_at(begin: int, end: int, **fields: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [begin, end], **fields}


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": tensor_at(0, 16), "bias": tensor_at(8, 24)},  # overlap
        {"weight": tensor_at(0, 16), "bias": tensor_at(32, 48)},  # a hole
        {"weight": tensor_at(0, 16), "bias": tensor_at(16, 1 << 60)},  # beyond the file
        {"weight": tensor_at(0, 16, shape=[1 << 40, 1 << 40])},
        {"weight": tensor_at(-16, 0)},
        {"weight": tensor_at(0, 16, dtype="X9")},
        {},
    ],
)
def test_a_damaged_header_of_safetensors_is_named(tensors: dict[str, Any], tmp_path: Path) -> None:
    header = json.dumps(tensors).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(48)
    (tmp_path / "damaged.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        load(tmp_path / "damaged.safetensors")


def test_a_length_of_the_header_beyond_the_file_is_named(tmp_path: Path) -> None:
    for length in (1 << 62, 200_000_000, 40):
        (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ValueError, match=r"long\.safetensors"):
            load(tmp_path / "long.safetensors")


def test_nothing_in_the_metadata_of_safetensors_relaxes_loading(tmp_path: Path) -> None:
    path = tmp_path / "partial.safetensors"
    save_file({"weight": WEIGHTS["weight"]}, path, {"matching_heuristics": "True"})
    with pytest.raises(ValueError, match=r"missing in the file \(1\):\n  bias"):
        load(path)


@pytest.mark.parametrize("part", ["data/0", "data.pkl"])
def test_a_checkpoint_that_expands_beyond_its_size_is_refused(tmp_path: Path, part: str) -> None:
    save({"model": WEIGHTS}, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            content = bytes(20_000_000) if name.endswith(part) else plain.read(name)
            bomb.writestr(name, content)
    with pytest.raises(ValueError, match=r"bomb\.pth.*damaged.*expand to 20,\d+,\d+ bytes"):
        load(path)


def test_a_number_too_large_for_the_model_is_named() -> None:
    weights = WEIGHTS | {"bias": torch.tensor([0.0, 1e300], dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"x\.pth: bias \(torch\.float64\) has numbers too large"):
        load_weights(model_of(), weights, source="x.pth")


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"too large for torch\.float16 in weight"):
        save_state({"weight": torch.tensor([1e6])}, tmp_path / "half.pth", torch.float16)
    assert list(tmp_path.iterdir()) == []


# Odd content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (7, "names that are no text: 7"),
        ((1, 2), r"names that are no text: \(1, 2\)"),
        ("", "names that are no text: "),
        (None, "names that are no text: None"),
    ],
)
def test_a_name_that_is_no_text_is_an_error(tmp_path: Path, name: Any, message: str) -> None:
    save({"model": {**WEIGHTS, name: torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=rf"odd\.pth' have {message}"):
        load(tmp_path / "odd.pth")


@fast
@given(name=st.text(min_size=1, max_size=200).filter(lambda name: name not in WEIGHTS))
def test_an_unknown_name_is_an_error_of_limited_length(name: str) -> None:
    with pytest.raises(ValueError, match="does not match the model") as caught:
        load_weights(model_of(), {**WEIGHTS, name: torch.zeros(1)}, source="odd.pth")
    assert len(str(caught.value)) < 1000
    assert str(caught.value).replace("\n", " ").isprintable()


def test_a_very_long_name_is_shortened(tmp_path: Path) -> None:
    save({"model": {"x" * 1_000_000: torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"1,000,000 characters") as caught:
        load(tmp_path / "odd.pth")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_another_kind_of_number_is_an_error(dtype: torch.dtype) -> None:
    weights = WEIGHTS | {"bias": torch.ones(2, dtype=dtype)}
    with pytest.raises(ValueError, match=rf"kinds of numbers.*\n  bias: {dtype} in the file"):
        load_weights(model_of(), weights, source="x.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_cast(dtype: torch.dtype) -> None:
    model = model_of()
    load_weights(model, {n: v.to(dtype) for n, v in WEIGHTS.items()}, source="x.pth")
    assert torch.equal(model.bias, WEIGHTS["bias"])
    assert model.bias.dtype == torch.float32


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.empty(2, device="meta"),
    ],
    ids=["sparse", "quantized", "meta"],
)
def test_a_tensor_without_plain_values_is_named(tmp_path: Path, value: Tensor) -> None:
    save({"model": {**WEIGHTS, "bias": value}}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        load(tmp_path / "odd.pth")


def test_an_expanded_tensor_of_a_terabyte_needs_no_memory(tmp_path: Path) -> None:
    weights = WEIGHTS | {"bias": torch.ones(1).expand(1 << 38)}
    save({"model": weights}, tmp_path / "huge.pth")
    with pytest.raises(ValueError, match=r"bias: \(274877906944,\) in the file, \(2,\)"):
        load(tmp_path / "huge.pth")


# Nothing in a file relaxes what is required of it


@pytest.mark.parametrize(
    "entries",
    [
        {"matching_heuristics": True},
        {"__author__": "Caffe2"},
        {"__author__": "x", "matching_heuristics": True},
    ],
)
def test_a_checkpoint_cannot_request_another_matching(
    tmp_path: Path, entries: dict[str, Any]
) -> None:
    save({"model": {"weight": WEIGHTS["weight"]}, **entries}, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"missing in the file \(1\):\n  bias"):
        load(tmp_path / "partial.pth")


def test_a_path_can_request_detectron2s_matching(tmp_path: Path) -> None:
    save({"model": {"weight": WEIGHTS["weight"]}}, tmp_path / "partial.pth")
    model = load(f"{tmp_path / 'partial.pth'}?matching_heuristics=True")
    assert torch.equal(model.weight, WEIGHTS["weight"])


def test_another_query_is_an_error(tmp_path: Path) -> None:
    save({"model": WEIGHTS}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="query must be matching_heuristics=True, not 'strict=0'"):
        load(f"{tmp_path / 'model.pth'}?strict=0")


def test_a_pickle_without_any_weight_of_the_model_is_an_error(tmp_path: Path) -> None:
    pickled({"model": {"conv1.w": np.ones(3)}, "__author__": "x"}, tmp_path / "other.pkl")
    with pytest.raises(ValueError, match=r"other\.pkl' has no weights of this model.*conv1\.w"):
        load(tmp_path / "other.pkl")


@pytest.mark.parametrize(
    "name",
    [
        *("/tmp/model.pth", "../model.pth", "sub/model.pth", "..", ".", ""),
        *("model.pth?matching_heuristics=True", "model.pkl", "model", "a\0.pth", "x" * 10_000),
        *("https://example.org/model.pth", "model.pth\nother"),
    ],
)
def test_a_last_checkpoint_elsewhere_is_not_resumed(tmp_path: Path, name: str) -> None:
    output = tmp_path / "output"
    output.mkdir()
    for folder in (tmp_path, output):
        save({"model": WEIGHTS}, folder / "model.pth")
    (output / "last_checkpoint").write_text(name)
    with pytest.raises(ValueError, match=r"last_checkpoint' names.*not a checkpoint") as caught:
        GLIPv2Checkpointer(model_of(), str(output)).resume_or_load("", resume=True)
    assert len(str(caught.value)) < 500


def test_a_last_checkpoint_of_bytes_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match="last_checkpoint' names"):
        GLIPv2Checkpointer(model_of(), str(tmp_path)).get_checkpoint_file()


# Code


def write_hostile(kind: str, folder: Path) -> Path:
    """A file that makes ``folder``/made if code of it runs."""
    hostile = Hostile(folder / "made")
    path = folder / f"hostile{'.pkl' if 'pickle' in kind else '.pth'}"
    contents: dict[str, Callable[[], object]] = {
        "zip": lambda: torch.save({"model": WEIGHTS, "extra": hostile}, path),
        "legacy": lambda: torch.save(
            {"model": hostile}, path, _use_new_zipfile_serialization=False
        ),
        "pickle": lambda: pickled({"model": ARRAYS, "__author__": hostile}, path),
        "pickle, protocol 0": lambda: pickled(hostile, path, 0),
        "pickle of tensors": lambda: pickled({"model": WEIGHTS, "__author__": "x"}, path),
        "pickle of an array of objects": lambda: pickled(
            {"model": {"weight": np.array([hostile], dtype=object)}, "__author__": "x"}, path
        ),
    }
    contents[kind]()
    return path


KINDS = (
    *("zip", "legacy", "pickle", "pickle, protocol 0", "pickle of tensors"),
    "pickle of an array of objects",
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_of_a_file_runs(tmp_path: Path, kind: str) -> None:
    path = write_hostile(kind, tmp_path)
    with pytest.raises(ValueError, match=f"{path.name}.*could execute code"):
        load(path)
    assert not (tmp_path / "made").exists()


def test_a_pickle_runs_code_only_with_the_unsafe_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_hostile("pickle", tmp_path)
    for value in ("0", "", "true"):
        monkeypatch.setenv(UNSAFE_VARIABLE, value)
        with pytest.raises(ValueError, match=f"{UNSAFE_VARIABLE}=1"):
            load(path)
    monkeypatch.setenv(UNSAFE_VARIABLE, "1")
    assert is_unchanged(load(path).state_dict())
    assert (tmp_path / "made").is_dir()


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pth", "w") as archive:
        for name in ("constants.pkl", "data.pkl", "code/x.py", "version"):
            archive.writestr(f"archive/{name}", b"")
    with pytest.raises(ValueError, match=r"script\.pth.*TorchScript.*could execute code"):
        load(tmp_path / "script.pth")


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfrombuffer\n.",
        b"ccollections\nnamedtuple\n.",
        b"c_codecs\ndecode\n.",
        b"(S'x'\ni__builtin__\neval\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"cnumpy\nndarray\n}S'tensor'\nK\x01sb.",
        b"ccollections\nOrderedDict\n(S'a'\nK\x01tb.",
        b"Pos.system\n.",
        # 2 ** 32 - 1 positions of the memo, and 2 ** 62 bytes.
        b"K\x01r\xff\xff\xff\xff.",
        b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b".",
        b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",
        b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.",
    ],
)
def test_a_hand_written_pickle_is_refused(tmp_path: Path, attack: bytes) -> None:
    (tmp_path / "attack.pkl").write_bytes(attack)
    with pytest.raises(ValueError, match=r"attack\.pkl"):
        load(tmp_path / "attack.pkl")


# What people have


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("heuristics", [{}, {"matching_heuristics": True}])
def test_files_of_detectron2s_model_zoo_are_loaded(
    tmp_path: Path, protocol: int, heuristics: dict[str, bool]
) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "Detectron2 Model Zoo", **heuristics}
    pickled(content, tmp_path / "zoo.pkl", protocol)
    assert is_unchanged(load(tmp_path / "zoo.pkl").state_dict())


def test_a_caffe2_file_of_python_2_is_loaded(tmp_path: Path) -> None:
    """``{"blobs": {"conv1_w": ..., "conv1_w_momentum": ...}}`` as cPickle wrote it."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00\\xbf'\ntb"
    )
    (tmp_path / "R-50.pkl").write_bytes(
        b"(dS'blobs'\n(dS'conv1_w'\n" + array + b"sS'conv1_w_momentum'\n" + array + b"ss."
    )
    model = nn.Module()
    model.stem = nn.Module()
    model.stem.conv1 = nn.Module()
    model.stem.conv1.register_buffer("weight", torch.zeros(2))
    GLIPv2Checkpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert torch.equal(model.stem.conv1.weight, torch.tensor([1.0, -0.5]))


@fast
@given(
    values=st.lists(st.floats(-100, 100, width=16), min_size=6, max_size=6),
    code=st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2"]),
    order=st.sampled_from("CF"),
    protocol=st.integers(0, 5),
)
def test_arrays_of_any_layout_keep_their_values(
    tmp_path: Path, values: list[float], code: str, order: Any, protocol: int
) -> None:
    array = np.array(values, code).reshape(2, 3).copy(order=order)
    pickled({"model": {"weight": array}, "__author__": "x"}, tmp_path / "a.pkl", protocol)
    model = model_of({"weight": torch.zeros(2, 3)})
    GLIPv2Checkpointer(model).load(str(tmp_path / "a.pkl"))
    assert model.weight.tolist() == np.array(values, "f4").reshape(2, 3).tolist()


def test_a_file_of_pycls_is_loaded(tmp_path: Path) -> None:
    counters = {"bn.num_batches_tracked": torch.tensor(3)}
    save({"epoch": 1, "model_state": {**WEIGHTS, **counters}}, tmp_path / "pycls.pyth")
    assert is_unchanged(load(tmp_path / "pycls.pyth").state_dict())
