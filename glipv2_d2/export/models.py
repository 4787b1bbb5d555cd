"""Which models and sizes of images can be exported, and what of a model is not."""

from __future__ import annotations

import re

import torch

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.language.bert import BertLanguageBackbone
from glipv2_d2.modeling.meta_arch import pad_images
from glipv2_d2.predictor import Predictor

MIN_SIDE, MAX_SIDE = 32, 8192


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "480x640".

    Raises:
        ValueError: it is not a size, or a side is not between 32 and 8192 pixels.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX]\s*([0-9]{1,6})\s*", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    check_size(size, text)
    return size


def check_size(size: tuple[int, int], text: str = "") -> None:
    """Raise a ValueError if a side is not between 32 and 8192 pixels."""
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise ValueError(
            f"size {text or size!r}: pass HEIGHTxWIDTH in pixels, each from {MIN_SIDE} to "
            f"{MAX_SIDE}, such as 480x640"
        )


def default_size(predictor: Predictor) -> tuple[int, int]:
    """(height, width) of a landscape image at the size of the config's tests."""
    settings = predictor.cfg.INPUT
    return int(settings.MIN_SIZE_TEST), int(settings.MAX_SIZE_TEST)


def padded_size(model: GLIPv2, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the network input for an image of this size."""
    square = model.backbone.padding_constraints.get("square_size", 0)
    images = pad_images([torch.zeros(1, *size)], model.backbone.size_divisibility, square)
    height, width = images.tensor.shape[-2:]
    return height, width


def exportable_model(predictor: Predictor) -> GLIPv2:
    """The model of a predictor.

    Raises:
        ValueError: it cannot be exported.
    """
    model = predictor.model
    if not isinstance(model, GLIPv2):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {type(model).__name__}, of which there is no export: "
            "choose a GLIPv2"
        )
    if predictor.cfg.TEST.PRECISION != "fp32":
        raise ValueError(
            f"TEST.PRECISION is {predictor.cfg.TEST.PRECISION}, but graphs are in fp32: leave out "
            "--precision, or set it to fp32"
        )
    if model.device.type != "cpu":
        raise ValueError(
            f"the model is on {model.device}, but exports run on the CPU: device='cpu'"
        )
    return model


def onnx_parts(model: GLIPv2) -> tuple[GroundingRPN, BertLanguageBackbone]:
    """The head and the text encoder of a model that can be graphs with the words as an input.

    Raises:
        ValueError: the model cannot.
    """
    head, encoder = model.proposal_generator, model.language_backbone
    if not isinstance(head, GroundingRPN):
        raise ValueError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is {type(head).__name__}, which has no export to ONNX: "
            "choose GroundingRPN or a subclass of it"
        )
    if not (isinstance(encoder, BertLanguageBackbone) and encoder.export_unit):
        raise ValueError(
            f"MODEL.LANGUAGE_BACKBONE.NAME is {type(encoder).__name__}, which has no export to "
            "ONNX: choose BertLanguageBackbone or PhraseLanguageBackbone, or export to TorchScript"
        )
    prompts = model.query_builder.prompts
    if prompts.num_orders > 0:
        raise ValueError(
            f"MODEL.PROMPT.NUM_ORDERS is {prompts.num_orders}: ONNX has one order of the class "
            "names, set it to 0"
        )
    if any(character.isalnum() for character in prompts.separator):
        raise ValueError(
            f"MODEL.PROMPT.SEPARATOR is {prompts.separator!r}: a separator with words has no "
            "export to ONNX"
        )
    return head, encoder


def parts_left_out(model: GLIPv2) -> list[str]:
    """What a model predicts beside boxes, of which there is no export."""
    tasks = model.text_tasks
    has = {
        "masks": model.roi_heads is not None,
        "answers": tasks is not None and tasks.answer is not None,
        "captions": tasks is not None and tasks.caption is not None,
    }
    return [name for name, present in has.items() if present]
