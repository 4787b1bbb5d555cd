"""GLIPv2: the whole data path on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.checkpoint.loading import convert_foreign
from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.layers.tracing import constants_of_export, fix_size
from glipv2_d2.modeling.fusion import FusedHead, build_fused_head
from glipv2_d2.modeling.heads.base import LossHead, ProposalGenerator
from glipv2_d2.modeling.heads.grounding_rpn import build_grounding_proposal_generator
from glipv2_d2.modeling.heads.inter_image import build_inter_image_head
from glipv2_d2.modeling.heads.masked_language import build_masked_language_head
from glipv2_d2.modeling.heads.roi_heads import GroundingROIHeads, build_grounding_roi_heads
from glipv2_d2.modeling.input_checks import check_inputs, names_images
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.language import LanguageBackbone, LanguageCache, build_language_backbone
from glipv2_d2.modeling.postprocess import (
    ChunkDetections,
    DetectionsPerImage,
    image_results,
    keep_topk,
    to_instances,
)
from glipv2_d2.modeling.prompt_builder import build_prompt_builder
from glipv2_d2.modeling.queries import QueryBuilder, iterate_chunks
from glipv2_d2.modeling.text_tasks import TextTasks, build_text_tasks
from glipv2_d2.modeling.training_events import put_grounding_scalars, put_training_image
from glipv2_d2.modeling.unread_keys import warn_of_unread_keys
from glipv2_d2.structures import (
    DensePredictions,
    FusedFeatures,
    FusedText,
    ImageFeatures,
    Query,
    TextFeatures,
    TokenBatch,
    fields,
)
from glipv2_d2.text.tokenizer import Tokenizer


@META_ARCH_REGISTRY.register()
class GLIPv2(CheckpointPrefixes, Configurable):
    """One model for localization and vision-language understanding, by matching regions with text.

    Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    config_keys: ClassVar[dict[str, str]] = {
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
        "num_orders": "MODEL.PROMPT.NUM_ORDERS",
        "answer_grounding": "MODEL.ANSWER.GROUNDING",
        "can_answer": "MODEL.ANSWER.WEIGHT",
        "can_caption": "MODEL.CAPTION.WEIGHT",
        "language_cache_size": "MODEL.LANGUAGE_BACKBONE.CACHE_SIZE",
        "text_tasks": "MODEL.ANSWER.WEIGHT, MODEL.CAPTION.WEIGHT",
        "fused_head": "MODEL.FUSED_HEAD.NAME",
    }
    checkpoint_optional = ("loss_heads.", "roi_heads.", "text_tasks.")
    checkpoint_loss_only = ("loss_heads.",)

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        language_backbone: LanguageBackbone,
        fused_head: FusedHead,
        proposal_generator: ProposalGenerator,
        query_builder: QueryBuilder,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        loss_heads: Mapping[str, LossHead] | None = None,
        roi_heads: GroundingROIHeads | None = None,
        text_tasks: TextTasks | None = None,
        language_cache_size: int = 0,
        max_detections_per_image: int = -1,
        input_format: str = "BGR",
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            backbone: images -> feature pyramid, finest level first.
            language_backbone: TokenBatch -> TextFeatures.
            fused_head: (pyramid, TextFeatures) -> the same, fused.
            proposal_generator: fused features -> boxes with a score per token.
            query_builder: input dicts -> queries.
            pixel_mean, pixel_std: per channel of the input, in the order of ``INPUT.FORMAT``.
            loss_heads: further losses by name (L_inter, L_mlm); None: without.
            roi_heads: predicts masks; None: no masks.
            text_tasks: answers questions and captions images; None: neither.
            language_cache_size: prompts whose text features are cached at inference; 0: none.
            max_detections_per_image: limit of the results of an image; -1: none.
            input_format: order of the channels, for pictures.
            vis_period: iterations between two pictures of the training; 0: none.

        Raises:
            ValueError: text tasks need a fused head that fuses text.
        """
        if text_tasks is not None and not fused_head.fuses_text:
            raise ValueError(
                "text_tasks need text that attends to the image, but the fused_head "
                f"{type(fused_head).__name__} does not fuse text: leave out text_tasks, or choose "
                "a fused_head that does (FusedDynamicHead)"
            )
        if text_tasks is None and (query_builder.can_answer or query_builder.can_caption):
            raise ValueError("query_builder expects questions or captions, but text_tasks is None")
        super().__init__()
        self.backbone = backbone
        self.language_backbone = language_backbone
        self.fused_head = fused_head
        self.proposal_generator = proposal_generator
        self.loss_heads = nn.ModuleDict(loss_heads or {})
        self.roi_heads = roi_heads
        self.text_tasks = text_tasks
        self.query_builder = query_builder
        self.language_cache = LanguageCache(language_cache_size)
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format
        self.vis_period = vis_period
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        warn_of_unread_keys(cfg)
        backbone = build_backbone(cfg)
        language_backbone = build_language_backbone(cfg)
        shapes, width = backbone.output_shape(), language_backbone.width
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        prompts = build_prompt_builder(
            cfg, tokenizer, num_orders=cfg.MODEL.PROMPT.NUM_ORDERS, accepts_negatives=True
        )
        loss_heads: dict[str, LossHead | None] = {
            "inter_image": build_inter_image_head(cfg, shapes, width),
            "masked_language": build_masked_language_head(cfg, tokenizer, language_backbone),
        }
        return {
            "backbone": backbone,
            "language_backbone": language_backbone,
            "fused_head": build_fused_head(cfg, shapes, width),
            "proposal_generator": build_grounding_proposal_generator(cfg, shapes, width),
            "query_builder": QueryBuilder(
                prompts=prompts,
                can_answer=cfg.MODEL.ANSWER.WEIGHT != 0,
                can_caption=cfg.MODEL.CAPTION.WEIGHT != 0,
                answer_grounding=cfg.MODEL.ANSWER.GROUNDING,
                encodes_nouns=language_backbone.encodes_nouns,
                config_keys=cls.config_keys,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_heads": {name: head for name, head in loss_heads.items() if head is not None},
            "roi_heads": build_grounding_roi_heads(cfg, shapes, width),
            "text_tasks": build_text_tasks(cfg, shapes, tokenizer, language_backbone),
            "language_cache_size": cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def convert_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Rename the weights of a GLIP or ImageNet Swin file, whoever loads it."""
        if not prefix:
            convert_foreign(self, state_dict)

    @names_images
    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image."""
        check_inputs(batched_inputs)
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """All losses of a training batch."""
        queries = [x.to(self.device) for x in self.query_builder.for_training(batched_inputs)]
        localized = [query for query in queries if query.gt_instances is not None]
        tokens = self.tokenize(localized)
        for head in self._loss_heads():
            tokens = head.corrupt_tokens(tokens, localized)

        features = self.encode_images(batched_inputs)
        text = self.encode_text(tokens)
        fused = self.fuse(features, localized, tokens, text)
        predictions = self.proposal_generator.predict(fused)
        self.visualize_training(batched_inputs, fused, predictions)
        if self.trains_masks_only:
            return self._mask_losses(fused, predictions)

        targets = self.proposal_generator.label_anchors(predictions, fused)
        if has_event_storage():
            put_grounding_scalars(predictions, targets)
        losses = self.proposal_generator.losses(predictions, targets, fused)
        for head in self._loss_heads():
            losses |= head.losses(fused, targets)
        if self.roi_heads is not None:
            losses |= self._mask_losses(fused, predictions)
        if all(query.is_placeholder for query in localized):
            # No input has boxes: the parts for boxes get gradients of 0, which DDP waits for.
            losses = {name: 0 * loss for name, loss in losses.items()}
        if self.text_tasks is not None:
            losses |= self.text_tasks.losses(self, features, fused, queries)
        if fused.region_text is not fused.fused_text:
            # No loss may read the fused text; DDP waits for gradients of its parameters, here 0.
            unused = 0 * fused.fused_text.hidden[fused.tokens.mask].sum()
            losses = {name: loss + unused for name, loss in losses.items()}
        return losses

    @torch.no_grad()
    def initialize_from(self, batches: Iterable[list[dict[str, Any]]]) -> None:
        """Let the proposal generator set layers in closed form from training batches."""
        self.proposal_generator.initialize_from(self._predict_localized(x) for x in batches)

    def _predict_localized(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[FusedFeatures, DensePredictions]:
        queries = [x.to(self.device) for x in self.query_builder.for_training(batched_inputs)]
        localized = [query for query in queries if query.gt_instances is not None]
        fused = self.fuse_queries(self.encode_images(batched_inputs), localized)
        return fused, self.proposal_generator.predict(fused)

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Results per image. Images are encoded once, their queries chunk by chunk."""
        features = self.encode_images(batched_inputs)
        outputs = self.generate_text(batched_inputs, features)
        chunks: list[ChunkDetections] = []
        for queries in iterate_chunks(
            self.query_builder.localized_queries(batched_inputs, outputs)
        ):
            chunks += self.detect(features, queries, earlier=chunks)
        return [
            image_results(
                x,
                _of_image(chunks, i),
                features.image_sizes[features.rows[i]],
                self.max_detections_per_image,
            )
            | outputs[i]
            for i, x in enumerate(batched_inputs)
        ]

    def encode_images(self, batched_inputs: list[dict[str, Any]]) -> ImageFeatures:
        """The feature pyramids of the batch; inputs that share an image tensor share a row."""
        first_of: dict[int, dict[str, Any]] = {}
        for x in batched_inputs:
            first_of.setdefault(id(x[fields.IMAGE]), x)
        images = self.preprocess_image(list(first_of.values()))
        row_of = {key: row for row, key in enumerate(first_of)}
        return ImageFeatures(
            self.backbone(images.tensor),
            images.image_sizes,
            [row_of[id(x[fields.IMAGE])] for x in batched_inputs],
        )

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, then pad right and bottom with zeros to the batch's largest image."""
        images = [x[fields.IMAGE].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return pad_images(
            images,
            self.backbone.size_divisibility,
            self.backbone.padding_constraints.get("square_size", 0),
        )

    def tokenize(self, queries: Sequence[Query], *, causal: bool = False) -> TokenBatch:
        """The tokens of the queries' prompts."""
        with constants_of_export():
            tokens = self.query_builder.tokenizer([query.prompt for query in queries])
            return replace(tokens.to(self.device), causal=causal)

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """The text features before fusion, cached at inference."""
        return self.language_cache(self.language_backbone, tokens)

    def fuse(
        self,
        features: ImageFeatures,
        queries: Sequence[Query],
        tokens: TokenBatch,
        text: TextFeatures,
    ) -> FusedFeatures:
        """Fuse the text of each query with its image."""
        selected = features.select(queries)
        fused_features, fused_text = self.fused_head(selected.levels, text)
        return FusedFeatures(
            queries=tuple(queries),
            tokens=tokens,
            text=text,
            fused_text=fused_text,
            region_text=self.fused_head.region_text(text, fused_text),
            image_sizes=selected.image_sizes,
            features=selected.levels,
            fused_features=fused_features,
        )

    def fuse_text(
        self,
        features: ImageFeatures,
        queries: Sequence[Query],
        tokens: TokenBatch,
        text: TextFeatures,
    ) -> FusedText:
        """As :meth:`fuse`, without the fused maps; tokens may be causal."""
        fused_text = self.fused_head.fuse_text(features.used_by(queries), text)
        return FusedText(
            queries=tuple(queries),
            tokens=tokens,
            text=text,
            fused_text=fused_text,
            region_text=self.fused_head.region_text(text, fused_text),
        )

    def score_labels(self, features: ImageFeatures, fused: FusedFeatures) -> list[LabelScores]:
        """Label scores at every location per query, averaged over orders of the class names.

        Averaging comes before NMS: every location has a score for every label, while detections
        would first have to be matched (our choice).
        """
        scores = self.proposal_generator.score_labels(self.proposal_generator.predict(fused), fused)
        orders = [self.query_builder.other_orders(query) for query in fused.queries]
        for k in range(max(map(len, orders), default=0)):
            rows = [i for i, others in enumerate(orders) if k < len(others)]
            queries = [orders[i][k] for i in rows]
            tokens = self.tokenize(queries)
            reordered = self.fuse(features, queries, tokens, self.encode_text(tokens))
            predictions = self.proposal_generator.predict(reordered)
            others = self.proposal_generator.score_labels(predictions, reordered)
            for i, other in zip(rows, others, strict=True):
                scores[i] = scores[i].lerp(other, 1 / (k + 2))  # the mean of k + 2 orders
        return scores

    def detect(
        self,
        features: ImageFeatures,
        queries: Sequence[Query],
        earlier: Sequence[ChunkDetections] = (),
    ) -> list[ChunkDetections]:
        """Detections, with masks if the model has them, of at most one query per image.

        Args:
            earlier: detections of earlier chunks. Detections that cannot be among the best of
                their image get no mask.
        """
        fused = self.fuse_queries(features, queries)
        detections = self.detect_boxes(features, fused)
        if self.roi_heads is not None:
            detections = [
                self.keep_best(found, query, earlier)
                for found, query in zip(detections, queries, strict=True)
            ]
            detections = self.roi_heads.predict_masks(fused, detections)
        return [ChunkDetections(q, found) for q, found in zip(queries, detections, strict=True)]

    def fuse_queries(self, features: ImageFeatures, queries: Sequence[Query]) -> FusedFeatures:
        """Encode the text of each query, and fuse it with its image."""
        tokens = self.tokenize(queries)
        return self.fuse(features, queries, tokens, self.encode_text(tokens))

    def detect_boxes(
        self, features: ImageFeatures, fused: FusedFeatures
    ) -> list[DetectionsPerImage]:
        """Detections without masks, per query."""
        return self.proposal_generator.detect(self.score_labels(features, fused), fused)

    def keep_best(
        self, found: DetectionsPerImage, query: Query, earlier: Sequence[ChunkDetections]
    ) -> DetectionsPerImage:
        """The detections of a chunk that can be among the best of their image."""
        limit = self.max_detections_per_image
        if limit < 0:
            return found
        return keep_topk(found, [x.detections for x in _of_image(earlier, query.image)], limit)

    @torch.no_grad()
    def visualize_training(
        self,
        batched_inputs: list[dict[str, Any]],
        fused: FusedFeatures,
        predictions: DensePredictions,
    ) -> None:
        """Every ``vis_period`` iterations, draw the first query into Detectron2's EventStorage."""
        query = fused.queries[0]
        is_due = (
            self.vis_period > 0
            and has_event_storage()
            and get_event_storage().iter % self.vis_period == 0
        )
        if not is_due or query.is_placeholder:
            return
        scores = self.proposal_generator.score_labels(predictions, fused)
        found = self.proposal_generator.detect(scores, fused)[0]
        size = fused.image_sizes[0]
        instances = to_instances(found, size, size, query.prompt.classes)
        put_training_image(batched_inputs[query.image], query, instances, self.input_format)

    def _mask_losses(
        self, fused: FusedFeatures, predictions: DensePredictions
    ) -> dict[str, Tensor]:
        """The losses of the masks of ground truths and of detections, as at inference."""
        assert self.roi_heads is not None
        with torch.no_grad():
            scores = self.proposal_generator.score_labels(predictions, fused)
            detections = self.proposal_generator.detect(scores, fused)
        return self.roi_heads.losses(fused, detections)

    def _loss_heads(self) -> list[LossHead]:
        return [cast("LossHead", head) for head in self.loss_heads.values()]

    def generate_text(
        self, batched_inputs: list[dict[str, Any]], features: ImageFeatures
    ) -> list[dict[str, Any]]:
        """Per input its ``answer`` or ``caption``; with ``ground`` also ``prompt``, ``phrases``."""
        outputs: list[dict[str, Any]] = [{} for _ in batched_inputs]
        queries = self.query_builder.text_queries(batched_inputs)
        if self.text_tasks is not None:
            predicted = self.text_tasks.predict(self, features, queries)
            for query, output in zip(queries, predicted, strict=True):
                outputs[query.image] |= output
        for x, output in zip(batched_inputs, outputs, strict=True):
            prompt = self.query_builder.text_prompt(x, output)
            if prompt is not None:
                output |= {fields.PROMPT: prompt, fields.PHRASES: prompt.phrases}
        return outputs

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def trains_masks_only(self) -> bool:
        """Whether all parts but the ROI heads are frozen: then no other loss has gradients."""
        return self.roi_heads is not None and not any(
            parameter.requires_grad
            for name, part in self.named_children()
            if name != "roi_heads"
            for parameter in part.parameters()
        )


def pad_images(images: Sequence[Tensor], divisibility: int, square_size: int = 0) -> ImageList:
    """As Detectron2's ``ImageList.from_tensors``, with sizes that are numbers in a tracer, too.

    Args:
        images: (C, H, W) each.
        divisibility: height and width of the batch are multiples of it; 0: of 1.
        square_size: height and width of the batch before that; 0: those of the largest images.
    """
    checked = [fix_size(image) for image in images]
    sizes = [(height, width) for _, height, width in checked]
    step = max(divisibility, 1)
    height, width = (
        -(-(square_size or max(of_axis)) // step) * step for of_axis in zip(*sizes, strict=True)
    )
    padded = [F.pad(image, (0, width - w, 0, height - h)) for image, h, w in checked]
    return ImageList(torch.stack(padded), sizes)


def _of_image(chunks: Sequence[ChunkDetections], image: int) -> list[ChunkDetections]:
    return [chunk for chunk in chunks if chunk.query.image == image]
