"""Directories of the reference's numbers, and the models that reproduce them.

A directory holds a checkpoint in the released layout with its inputs and outputs. The project ships
one; the environment variable GLIP_GOLDEN names more (separated by ``:``). Config and sizes are read
from the directory, so any directory of the same form will do.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.models import glip_cfg
from helpers.queries import fuse

import glipv2_d2  # noqa: F401 - registers the model
from glipv2_d2.checkpoint import GLIPv2Checkpointer
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.structures import Prompt, TextFeatures, TokenBatch
from glipv2_d2.text.prompts import caption_prompt, class_prompt

ASSETS = Path(__file__).parents[1] / "assets"
# The image of the reference's numbers is that of scikit-image, to the pixel.
PHOTO = Path(skimage.__file__).parent / "data" / "chelsea.png"
LEVELS = ("p3", "p4", "p5", "p6", "p7")


def golden_directories() -> list[Path]:
    """The shipped directory and those of GLIP_GOLDEN, each name once."""
    named = [Path(p) for p in os.environ.get("GLIP_GOLDEN", "").split(":") if p]
    for directory in named:
        if not (directory / "meta.json").is_file():
            raise FileNotFoundError(f"GLIP_GOLDEN names {directory}, which has no meta.json")
    shipped = ASSETS / "tiny_T_s0"
    # A directory from outside may hold more stages than the shipped one of the same name.
    by_name = {shipped.name: shipped} | {directory.name: directory for directory in named}
    return list(by_name.values())


class Golden:
    """One directory: its arrays, its prompts and its model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
        self.reference: dict[str, Any] = yaml.safe_load((directory / "config.yaml").read_text())
        self.arrays: dict[str, np.ndarray] = {}
        for name in ("golden_eval.npz", "golden_trace.npz"):
            if (directory / name).is_file():
                self.arrays.update(np.load(directory / name))
        self.train_arrays: dict[str, np.ndarray] = {}
        if (directory / "golden_train.npz").is_file():
            self.train_arrays.update(np.load(directory / "golden_train.npz"))

    def __repr__(self) -> str:
        return self.directory.name

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    @functools.cached_property
    def cfg(self) -> CfgNode:
        """This project's config of the directory's model, on the CPU, without stochastic parts."""
        cfg = glip_cfg()
        ref, model = self.reference, self.reference["MODEL"]
        bert = json.loads((self.directory / "bert-base-uncased" / "config.json").read_text())
        fused = model["DYHEAD"]["FUSE_CONFIG"]["EARLY_FUSE_ON"]
        values = {
            "MODEL.PIXEL_MEAN": ref["INPUT"]["PIXEL_MEAN"],
            "MODEL.PIXEL_STD": ref["INPUT"]["PIXEL_STD"],
            "MODEL.SWIN.EMBED_DIM": model["SWINT"]["EMBED_DIM"],
            "MODEL.SWIN.DEPTHS": model["SWINT"]["DEPTHS"],
            "MODEL.SWIN.NUM_HEADS": model["SWINT"]["NUM_HEADS"],
            "MODEL.SWIN.WINDOW_SIZE": model["SWINT"]["WINDOW_SIZE"],
            "MODEL.SWIN.MLP_RATIO": float(model["SWINT"]["MLP_RATIO"]),
            "MODEL.SWIN.DROP_PATH_RATE": 0.0,
            "MODEL.FPN.OUT_CHANNELS": model["BACKBONE"]["OUT_CHANNELS"],
            "MODEL.FPN.DROP_BLOCK_PROB": 0.0,
            "MODEL.LANGUAGE_BACKBONE.MODEL": str(self.directory / "bert-base-uncased"),
            "MODEL.PROMPT.SEPARATOR": ref["DATASETS"]["SEPARATION_TOKENS"],
            "MODEL.PROMPT.MAX_TOKENS": model["LANGUAGE_BACKBONE"]["MAX_QUERY_LEN"],
            "MODEL.FUSED_HEAD.NAME": "FusedDynamicHead" if fused else "DynamicHead",
            "MODEL.FUSED_HEAD.NUM_BLOCKS": model["DYHEAD"]["NUM_CONVS"],
            "MODEL.FUSED_HEAD.GROUP_NORM_GROUPS": model["GROUP_NORM"]["NUM_GROUPS"],
            "MODEL.FUSED_HEAD.FUSION_DIM": self.meta["fuse"]["embed_dim"],
            "MODEL.FUSED_HEAD.FUSION_HEADS": self.meta["fuse"]["n_head"],
            "MODEL.FUSED_HEAD.FUSION_DROPOUT": 0.0,
            "MODEL.FUSED_HEAD.LANGUAGE_HEADS": bert["num_attention_heads"],
            "MODEL.FUSED_HEAD.LANGUAGE_FFN_DIM": bert["intermediate_size"],
            "MODEL.FUSED_HEAD.LANGUAGE_DROPOUT": 0.0,
            "MODEL.GROUNDING.SCORE_AGGREGATION": model["DYHEAD"]["SCORE_AGG"].lower(),
            "MODEL.GROUNDING.SCORE_THRESH": model["ATSS"]["INFERENCE_TH"],
            "MODEL.GROUNDING.PRE_NMS_TOPK": model["ATSS"]["PRE_NMS_TOP_N"],
            "MODEL.GROUNDING.NMS_THRESH": model["ATSS"]["NMS_TH"],
            "MODEL.GROUNDING.DETECTIONS_PER_PROMPT": model["ATSS"]["DETECTIONS_PER_IMG"],
            "MODEL.GROUNDING.ATSS_TOPK": model["ATSS"]["TOPK"],
            "MODEL.GROUNDING.BOX_LOSS_WEIGHT": model["ATSS"]["REG_LOSS_WEIGHT"],
            "INPUT.RESIZE": "TruncatedResizeShortestEdge",
            "INPUT.MIN_SIZE_TEST": ref["INPUT"]["MIN_SIZE_TEST"],
            "INPUT.MAX_SIZE_TEST": ref["INPUT"]["MAX_SIZE_TEST"],
            "MODEL.WEIGHTS": str(self.directory / "model.pth"),
        }
        cfg.merge_from_list([item for pair in values.items() for item in pair])
        return cfg

    def build_model(self) -> GLIPv2:
        model = build_model(self.cfg)
        checkpointer: DetectionCheckpointer = GLIPv2Checkpointer(model)
        checkpointer.load(self.cfg.MODEL.WEIGHTS)
        return model

    @functools.cached_property
    def model(self) -> GLIPv2:
        """The model in evaluation mode; tests must not change it."""
        return self.build_model().eval()

    @property
    def class_prompt(self) -> Prompt:
        return class_prompt(self.meta["categories"], separator=self.cfg.MODEL.PROMPT.SEPARATOR)

    def demo_prompt(self, name: str) -> Prompt:
        """``free`` (a caption with noun phrases) or ``list`` (the demo's list of names)."""
        demo = self.meta[f"demo_{name}"]
        return caption_prompt(demo["caption"], demo["spans"])

    def inputs(self, images: str) -> list[dict[str, Any]]:
        """Input dicts of ``one`` image or ``two``, resized as the reference did."""
        names = {"one": ["chelsea"], "two": ["chelsea", "astronaut"]}[images]
        rgb = [self.arrays[f"in/{name}_resized_rgb_u8"] for name in names]
        return [
            {"image": torch.from_numpy(np.ascontiguousarray(x[:, :, ::-1].transpose(2, 0, 1)))}
            for x in rgb
        ]

    def tokens(self, prompts: list[Prompt]) -> TokenBatch:
        return self.model.query_builder.tokenizer(prompts)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - lives as long as the test session
    def stages(self, images: str) -> dict[str, Any]:
        """Every stage of the data path for ``one`` image or ``two``, computed once."""
        model, inputs = self.model, self.inputs(images)
        with torch.no_grad():
            batch = model.preprocess_image(inputs)
            fused = fuse(model, inputs, [self.class_prompt] * len(inputs))
            return {
                "images": batch,
                "fused": fused,
                "bottom_up": model.backbone.bottom_up(batch.tensor),
                "head_states": trace_head(model, fused.features, fused.text),
                "predictions": model.proposal_generator.predict(fused),
            }


def trace_head(
    model: GLIPv2, features: dict[str, torch.Tensor], text: TextFeatures
) -> list[tuple[list[torch.Tensor], TextFeatures]]:
    """The state after every module of the reference's tower, in its order."""
    state = list(features.values()), text
    states = []
    for block in model.fused_head.blocks:
        per_level, text = state
        if hasattr(block, "fusion"):
            per_level, text = block.fusion(per_level, text)
            states.append((per_level, text))
            text = block.language_layer(text)
            states.append((per_level, text))
        state = block.dynamic_conv(per_level), text
        states.append(state)
    return states


@functools.cache
def load_golden(directory: Path) -> Golden:
    return Golden(directory)
