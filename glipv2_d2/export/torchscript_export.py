"""GLIPv2 as a TorchScript graph with fixed class names and one size of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from glipv2_d2.export.folder import SETTINGS_FILE, staged_folder
from glipv2_d2.export.graphs import FixedNamesDetector
from glipv2_d2.export.models import check_size, default_size, exportable_model
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.predictor import Predictor
from glipv2_d2.text.names import check_names


def export_torchscript(
    predictor: Predictor,
    folder: str | Path,
    class_names: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    name: str = "",
) -> Path:
    """Write a model as model.pt, for ``torch.jit.load``, with its settings in export.json.

    The graph maps an image (3, H, W), 0..255, to the results of
    :class:`~glipv2_d2.export.graphs.FixedNamesDetector`. Other sizes are an error.

    Args:
        predictor, folder, name: see :func:`~glipv2_d2.export.onnx_export.export_onnx`.
        class_names: those that the graph detects.
        size: (height, width) of its images; default: that of the config's tests, in landscape.

    Raises:
        ValueError: the model cannot be exported, or the folder has files.
        OSError: the folder cannot be written.
    """
    model = exportable_model(predictor)
    names = check_names(class_names)
    size = size or default_size(predictor)
    check_size(size)
    graph = FixedNamesDetector(model, names).eval()
    with staged_folder(Path(folder)) as staging, torch.no_grad(), warnings.catch_warnings():
        # About numbers that become constants: the size and the names are fixed.
        warnings.simplefilter("ignore")
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        traced = torch.jit.trace(graph, image, check_trace=False)
        torch.jit.save(traced, str(staging / "model.pt"))
        settings = {
            "format": "torchscript",
            "model": name,
            "class_names": names,
            "height": size[0],
            "width": size[1],
            "channels": predictor.cfg.INPUT.FORMAT,
        }
        atomic_write(staging / SETTINGS_FILE, dump_json(settings, indent=1))
    return Path(folder)
