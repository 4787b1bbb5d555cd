"""GLIPv2 as two ONNX graphs, text encoder and detector, with the words as a run-time input.

The folder has what :mod:`glipv2_d2.export.runtime` needs, which is in it as detect.py.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import symbolic_helper

from glipv2_d2.export import runtime
from glipv2_d2.export.folder import SETTINGS_FILE, staged_folder
from glipv2_d2.export.graphs import DetectorGraph, TextGraph, outputs_of
from glipv2_d2.export.models import (
    check_size,
    default_size,
    exportable_model,
    onnx_parts,
    padded_size,
)
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.layers.tracing import computed_as_recorded
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.language.bert import BertLanguageBackbone
from glipv2_d2.predictor import Predictor
from glipv2_d2.structures import fields

# The first with DeformConv.
OPSET = 19
# What the graphs are recorded with; others are checked.
_NUM_TOKENS, _NUM_TEXTS = 7, 3
# The check's words, and how much its results may differ.
_NAMES = ("the small red dog on the left", "traffic light", "person")
_OUTPUTS, _LIMITS = ("boxes", "logits", "centerness"), (0.5, 1e-2, 1e-2)
# Of the locations: where two boxes are cut out alike, rounding may choose the other one.
_MAX_SHARE_DIFFERENT = 0.01


def export_onnx(
    predictor: Predictor, folder: str | Path, *, size: tuple[int, int] | None = None, name: str = ""
) -> Path:
    """Write a model as ONNX graphs for images of one size and any class names.

    The graphs are compared with the model on another image and other words before the folder
    appears.

    Args:
        predictor: with a :class:`~glipv2_d2.modeling.GLIPv2` on the CPU in fp32.
        folder: must not exist, or be empty.
        size: (height, width) that images are resized to fit in; default: that of the config's
            tests, in landscape. Padding makes it a multiple of the backbone's stride.
        name: of the model, for the settings.

    Raises:
        ValueError: the model cannot be exported, the graphs are not equal to it, or the folder has
            files.
        OSError: the folder cannot be written.
    """
    model = exportable_model(predictor)
    _, encoder = onnx_parts(model)
    check_size(size or default_size(predictor))
    height, width = padded_size(model, size or default_size(predictor))
    with staged_folder(Path(folder)) as staging, torch.no_grad():
        _write_text_graph(encoder, model.query_builder.tokenizer.begin_id, staging / "text.onnx")
        level_sizes = _write_detector_graph(model, (height, width), staging / "detector.onnx")
        settings = {
            "format": "onnx",
            "version": runtime.VERSION,
            "model": name,
            "image": _image_settings(predictor, height, width),
            "text": _text_settings(model),
            "detection": _detection_settings(predictor, level_sizes),
        }
        atomic_write(staging / SETTINGS_FILE, dump_json(settings, indent=1))
        tokenizer = model.query_builder.tokenizer.serialized()
        atomic_write(staging / "tokenizer.json", tokenizer)
        shutil.copyfile(Path(runtime.__file__), staging / "detect.py")
        parser = phrase_parser(model)
        if parser:
            source = importlib.import_module(parser).__file__
            assert source is not None
            shutil.copyfile(source, staging / "phrase_parser.py")
        check_equal(model, staging)
    return Path(folder)


def phrase_parser(model: GLIPv2) -> str:
    """The module that parses phrases for the text encoder and the head; "": none.

    Raises:
        ValueError: they need different ones.
    """
    names = {model.language_backbone.phrase_parser, model.proposal_generator.phrase_parser} - {""}
    if len(names) > 1:
        raise ValueError(f"text encoder and head parse phrases with different modules: {names}")
    return names.pop() if names else ""


@torch.no_grad()
def check_equal(model: GLIPv2, folder: Path) -> None:
    """Raise a ValueError if the graphs in a folder differ from the model on other inputs."""
    name = phrase_parser(model)
    parser = importlib.import_module(name) if name else None
    detector = runtime.Detector(folder, phrase_parser=parser)
    settings = detector.settings["image"]
    image = _smooth_image(settings["height"], settings["width"])
    normalized = ((image - model.pixel_mean) / model.pixel_std).numpy()
    # The first prompt, as a model may have few class names in each.
    found = detector.run(normalized, detector.prompts(_NAMES)[0])
    x = {fields.IMAGE: image, fields.CLASSES: list(_NAMES)}
    queries = model.query_builder.localized_queries([x], [{}])
    head, _ = onnx_parts(model)
    with computed_as_recorded():
        fused = model.fuse_queries(model.encode_images([x]), queries[:1])
        expected = outputs_of(head, head.predict(fused))
    for kind, limit, graph, own in zip(_OUTPUTS, _LIMITS, found, expected, strict=True):
        # Not ">", as differences may be nan.
        share = 1 - float((np.abs(graph - own.numpy()) <= limit).mean())
        if share > _MAX_SHARE_DIFFERENT:
            raise ValueError(
                f"the exported graphs differ from the model in {share:.0%} of the {kind}: a part "
                "of this model cannot be exported to ONNX"
            )


def _smooth_image(height: int, width: int) -> Tensor:
    """(3, H, W) floats in 0..255 with large shapes."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 5, 7, generator=generator)
    large = F.interpolate(small, size=(height, width), mode="bicubic")[0]
    return (large * 255).round().clamp(0, 255)


def _write_text_graph(encoder: BertLanguageBackbone, begin_id: int, path: Path) -> None:
    ids = torch.full((_NUM_TEXTS, _NUM_TOKENS), begin_id)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    axes = {0: "texts", 1: "tokens"}
    _export(
        TextGraph(encoder), (ids, mask), path, {"input_ids": axes, "mask": axes}, {"hidden": axes}
    )


def _write_detector_graph(model: GLIPv2, size: tuple[int, int], path: Path) -> list[int]:
    """Write the graph; return the locations of each level."""
    head, _ = onnx_parts(model)
    graph = DetectorGraph(model, head).eval()
    image = (_smooth_image(*size).flip(-1) - model.pixel_mean) / model.pixel_std
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, _NUM_TOKENS, model.language_backbone.width, generator=generator)
    inputs, axes = [image, text], {"image": {}, "text": {1: "tokens"}}
    if num_descriptions(model):
        inputs.append(torch.rand(1, _NUM_TOKENS, num_descriptions(model), generator=generator))
        axes["descriptions"] = {1: "tokens"}
    _export(graph, inputs, path, axes, {"boxes": {}, "logits": {1: "tokens"}, "centerness": {}})
    return graph.level_sizes(*inputs)


def num_descriptions(model: GLIPv2) -> int:
    """K, the numbers that describe a label."""
    queries = model.query_builder.localized_queries([{fields.CLASSES: ["dog"]}], [{}])
    return model.proposal_generator.describe_labels(model.tokenize(queries)).shape[-1]


def _export(
    graph: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    inputs_axes: dict[str, dict[int, str]],
    outputs_axes: dict[str, dict[int, str]],
) -> None:
    """Record a graph; the axes are those that vary at run time.

    With torch's first exporter, which takes a tenth of the time of the one over torch.export.
    """
    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", _deform_conv, OPSET)
    try:
        with warnings.catch_warnings():
            # About sizes that become constants: the size of images is fixed.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph.eval(),
                tuple(inputs),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs_axes),
                output_names=list(outputs_axes),
                dynamic_axes={k: v for k, v in {**inputs_axes, **outputs_axes}.items() if v},
            )
    except (OSError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"a part of this model cannot be exported to ONNX: {reason[-1]}"
        ) from error


@symbolic_helper.parse_args("v", "v", "v", "v", "v", *("i",) * 9)
def _deform_conv(
    g: Any,
    x: Any,
    weight: Any,
    offsets: Any,
    modulation: Any,
    bias: Any,
    stride_y: int,
    stride_x: int,
    pad_y: int,
    pad_x: int,
    dilation_y: int,
    dilation_x: int,
    groups: int,
    offset_groups: int,
    use_mask: int,  # noqa: ARG001 - always
) -> Any:
    """ONNX's DeformConv in place of torchvision's, with the same order of offsets."""
    return g.op(
        "DeformConv",
        *(x, weight, offsets, bias, modulation),
        strides_i=[stride_y, stride_x],
        pads_i=[pad_y, pad_x, pad_y, pad_x],
        dilations_i=[dilation_y, dilation_x],
        group_i=groups,
        offset_group_i=offset_groups,
    )


def _image_settings(predictor: Predictor, height: int, width: int) -> dict[str, Any]:
    cfg = predictor.cfg
    return {
        "height": height,
        "width": width,
        "channels": cfg.INPUT.FORMAT,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "resize": cfg.INPUT.RESIZE,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
    }


def _text_settings(model: GLIPv2) -> dict[str, Any]:
    encoder, prompts = model.language_backbone, model.query_builder.prompts
    tokenizer = model.query_builder.tokenizer
    return {
        "unit": encoder.export_unit,
        "embeds_core_phrases": bool(encoder.phrase_parser),
        "num_descriptions": num_descriptions(model),
        "phrase_parser": phrase_parser(model),
        "separator": prompts.separator,
        "max_tokens": tokenizer.max_tokens,
        "max_classes": prompts.max_classes,
        "special_ids": [tokenizer.begin_id, tokenizer.end_id],
        "all_special_ids": tokenizer.special_ids,
        "unk_id": tokenizer.unknown_id,
    }


def _detection_settings(predictor: Predictor, level_sizes: list[int]) -> dict[str, Any]:
    model = exportable_model(predictor)
    head, _ = onnx_parts(model)
    settings = head.postprocess
    return {
        "levels": level_sizes,
        "score_thresh": settings.score_thresh,
        "pre_nms_topk": settings.pre_nms_topk,
        "nms_thresh": settings.nms_thresh,
        "detections_per_prompt": settings.detections_per_prompt,
        "detections_per_image": model.max_detections_per_image,
        "aggregation": settings.aggregation,
        "display_score_thresh": predictor.threshold,
    }
