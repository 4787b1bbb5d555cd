"""A model at inference on one size and one prompt, replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.postprocess import ChunkDetections, image_results
from glipv2_d2.structures import (
    DensePredictions,
    FusedFeatures,
    ImageFeatures,
    Query,
    TextFeatures,
    TokenBatch,
)

# Runs before the capture: libraries choose their kernels, and caches are filled, in these.
_WARMUP = 3


class GraphedDetector:
    """Detections of a model whose dense part, backbone to raw predictions, is one CUDA graph.

    Launching the kernels of small images takes the CPU longer than the GPU needs for them; a graph
    launches all of them at once. The text is encoded once; preparing the images and
    post-processing, whose shapes depend on values, run as usual. The model must not change while
    the graph is used.
    """

    def __init__(
        self,
        model: GLIPv2,
        inputs: Sequence[dict[str, Any]],
        *,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Capture the graph.

        Args:
            model: in evaluation mode, on a CUDA device, without masks and text tasks.
            inputs: images, with the class names or captions of every later call.
            autocast: context of the forward pass.

        Raises:
            ValueError: the model or the inputs cannot be captured.
        """
        if model.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a model on a CUDA device, not {model.device}")
        if model.training or model.roi_heads is not None or model.text_tasks is not None:
            raise ValueError(
                "a CUDA graph needs a model in evaluation mode, without masks (MODEL.MASK_ON) and "
                "text tasks (MODEL.ANSWER.WEIGHT, MODEL.CAPTION.WEIGHT)"
            )
        self.model = model
        self.autocast = autocast
        self.queries = one_query_per_image(model, inputs)
        images = model.preprocess_image(list(inputs))
        self.image_sizes = images.image_sizes
        self._images = images.tensor.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Caches of CUDA tensors have the stream in their keys: it must be that of the capture, or
        # the capture would fill them with tensors that have no values yet.
        stream = torch.cuda.Stream(model.device)
        stream.wait_stream(torch.cuda.current_stream(model.device))
        with torch.no_grad(), autocast():
            self._tokens = model.tokenize(self.queries)
            self._text = model.encode_text(self._tokens)
            stream.wait_stream(torch.cuda.current_stream(model.device))
            with torch.cuda.stream(stream):
                for _ in range(_WARMUP):
                    self._dense()
            stream.synchronize()
            # Autocast keeps rounded weights until its context ends; the graph must have its own.
            torch.clear_autocast_cache()
            with torch.cuda.graph(self._graph, stream=stream):
                self._fused, self._predictions = self._dense()
            torch.clear_autocast_cache()

    def __call__(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the model returns for other images of the same sizes and the same prompt.

        Raises:
            ValueError: the images have other sizes.
        """
        images = self.model.preprocess_image(list(inputs))
        if images.image_sizes != self.image_sizes:
            raise ValueError(
                f"the graph is of images of {self.image_sizes} (height, width), not of "
                f"{images.image_sizes}"
            )
        self._images.copy_(images.tensor)
        self._graph.replay()
        head = self.model.proposal_generator
        with torch.no_grad(), self.autocast():
            scores = head.score_labels(self._predictions, self._fused)
            detections = head.detect(scores, self._fused)
            limit = self.model.max_detections_per_image
            return [
                image_results(x, [ChunkDetections(query, found)], size, limit)
                for x, query, found, size in zip(
                    inputs, self.queries, detections, self.image_sizes, strict=True
                )
            ]

    def _dense(self) -> tuple[FusedFeatures, DensePredictions]:
        return predict_densely(
            self.model, self._images, self.image_sizes, self.queries, self._tokens, self._text
        )


def one_query_per_image(model: GLIPv2, inputs: Sequence[dict[str, Any]]) -> list[Query]:
    """The only query of every image.

    Raises:
        ValueError: an image has several, or is scored in several orders of its class names.
    """
    queries = model.query_builder.localized_queries(list(inputs), [{} for _ in inputs])
    if [query.image for query in queries] != list(range(len(inputs))):
        raise ValueError(
            f"{len(inputs)} images have {len(queries)} prompts; a CUDA graph needs one prompt per "
            "image: use fewer class names"
        )
    if any(model.query_builder.other_orders(query) for query in queries):
        raise ValueError("a CUDA graph needs MODEL.PROMPT.NUM_ORDERS 1")
    return queries


def predict_densely(
    model: GLIPv2,
    images: Tensor,
    image_sizes: list[tuple[int, int]],
    queries: Sequence[Query],
    tokens: TokenBatch,
    text: TextFeatures,
) -> tuple[FusedFeatures, DensePredictions]:
    """Backbone, fusion and head, whose operations do not depend on values.

    Args:
        images: (N, 3, H, W), of :meth:`GLIPv2.preprocess_image`.
        queries: one per image.
    """
    features = ImageFeatures(model.backbone(images), image_sizes, list(range(len(images))))
    fused = model.fuse(features, queries, tokens, text)
    return fused, model.proposal_generator.predict(fused)
