"""GLIPv2: the whole data path on one page."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from glipv2_d2.modeling.fusion import build_fused_head
from glipv2_d2.modeling.heads.grounding_rpn import LANGUAGE
from glipv2_d2.modeling.heads.inter_image import InterImageHead, build_inter_image_head
from glipv2_d2.modeling.heads.masked_language import (
    MaskedLanguageHead,
    build_masked_language_head,
)
from glipv2_d2.modeling.language import LanguageCache, build_language_backbone
from glipv2_d2.modeling.postprocess import DetectionsPerImage, to_instances
from glipv2_d2.modeling.prompting import InputPrompts
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.tokenizer import Tokenizer


@META_ARCH_REGISTRY.register()
class GLIPv2(nn.Module):
    """One model for localization and understanding: regions matched with words.

    Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    checkpoint_optional_prefixes = ("inter_image.", "masked_language.")
    """Names of weights that only a loss reads: files and models may have them or not."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        language_backbone: nn.Module,
        fused_head: nn.Module,
        proposal_generator: nn.Module,
        tokenizer: Tokenizer,
        input_prompts: InputPrompts,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        inter_image: InterImageHead | None = None,
        masked_language: MaskedLanguageHead | None = None,
        scores_fused_words: bool = True,
        language_cache_size: int = 0,
        max_detections_per_image: int = -1,
    ) -> None:
        """
        Args:
            backbone: images -> pyramid, finest level first.
            language_backbone: TokenBatch -> LanguageFeatures.
            fused_head: (pyramid, LanguageFeatures) -> the same, fused.
            proposal_generator: called as :class:`~glipv2_d2.modeling.heads.GroundingRPN` is.
            input_prompts: what is asked of an input.
            pixel_mean, pixel_std: per channel of the input, in the order of ``INPUT.FORMAT``.
            inter_image: gives L_inter; None: that loss is left out.
            masked_language: hides words in training and gives L_mlm; None: no word is hidden.
            scores_fused_words: regions are scored against fused words; else against those that
                the language backbone gave.
            language_cache_size: prompts whose features are kept at inference; 0: none.
            max_detections_per_image: for an image that was asked several prompts; -1: all.
        """
        super().__init__()
        self.backbone = backbone
        self.language_backbone = language_backbone
        self.fused_head = fused_head
        self.proposal_generator = proposal_generator
        self.inter_image = inter_image
        self.masked_language = masked_language
        self.tokenizer = tokenizer
        self.input_prompts = input_prompts
        self.scores_fused_words = scores_fused_words
        self.language_cache = LanguageCache(language_cache_size)
        self.max_detections_per_image = max_detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        language_backbone = build_language_backbone(cfg)
        shapes, width = backbone.output_shape(), language_backbone.width
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {
            "backbone": backbone,
            "language_backbone": language_backbone,
            "fused_head": build_fused_head(cfg, shapes, width),
            "proposal_generator": build_proposal_generator(
                cfg, {**shapes, LANGUAGE: ShapeSpec(channels=width)}
            ),
            "tokenizer": tokenizer,
            "input_prompts": InputPrompts(
                tokenizer=tokenizer,
                separator=cfg.MODEL.PROMPT.SEPARATOR,
                max_tokens=cfg.MODEL.PROMPT.MAX_TOKENS,
                max_classes=cfg.MODEL.PROMPT.MAX_CLASSES,
                default_classes=functools.partial(
                    dataset_classes, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
                ),
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "inter_image": build_inter_image_head(cfg, shapes, width),
            "masked_language": build_masked_language_head(cfg, tokenizer, language_backbone),
            "scores_fused_words": cfg.MODEL.GROUNDING.FUSED_WORDS,
            "language_cache_size": cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def checkpoint_excluded_prefixes(self) -> tuple[str, ...]:
        """Names of weights that come from elsewhere and so are not part of checkpoints.

        A frozen part whose weights a package brings says so in its ``checkpoint_excluded``.
        """
        return tuple(
            f"{name}.{prefix}"
            for name, module in self.named_modules()
            for prefix in getattr(module, "checkpoint_excluded", ())
        )

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        asked = [self.input_prompts.for_training(x) for x in batched_inputs]
        tokens = self.tokenizer([prompt for prompt, _ in asked]).to(self.device)
        gt_instances = [instances.to(self.device) for _, instances in asked]
        if self.masked_language is not None:
            tokens, masked_words = self.masked_language.mask(tokens, gt_instances)

        # Embed each modality alone:
        features = self.backbone(images.tensor)
        language = self.language_cache(self.language_backbone, tokens)

        # Let them read each other:
        fused_features, fused_language = self.fused_head(features, language)

        # Score regions against words, and place the boxes:
        words = fused_language if self.scores_fused_words else language
        targets, losses = self.proposal_generator(
            images, fused_features, words, tokens, gt_instances
        )

        # Contrast regions with the words of all images, and guess the masked words:
        if self.inter_image is not None:
            losses |= self.inter_image(features, language, tokens, gt_instances, targets)
        if self.masked_language is not None:
            losses |= self.masked_language(fused_language, masked_words)
        return losses

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same path, with the image's part walked once for all of its prompts."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        prompts_per_image = [self.input_prompts.for_inference(x) for x in batched_inputs]

        results_per_image: list[list[tuple[DetectionsPerImage, Prompt]]] = [[] for _ in images]
        for indices, prompts in rounds(prompts_per_image):
            tokens = self.tokenizer(prompts).to(self.device)
            language = self.language_cache(self.language_backbone, tokens)
            fused_features, fused_language = self.fused_head(
                select_images(features, indices), language
            )
            words = fused_language if self.scores_fused_words else language
            sizes = [images.image_sizes[i] for i in indices]
            detections, _ = self.proposal_generator(
                ImageList(images.tensor, sizes), fused_features, words, tokens
            )
            for i, found, prompt in zip(indices, detections, prompts, strict=True):
                results_per_image[i].append((found, prompt))
        return [
            self.describe(x, results, size)
            for x, results, size in zip(
                batched_inputs, results_per_image, images.image_sizes, strict=True
            )
        ]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, then pad right and bottom with zeros to the batch's largest image."""
        images = [x[fields.IMAGE].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def describe(
        self,
        x: dict[str, Any],
        results: list[tuple[DetectionsPerImage, Prompt]],
        image_size: tuple[int, int],
    ) -> dict[str, Any]:
        """Detections of all prompts of one image, in the caller's pixels and classes."""
        output_size = (x.get(fields.HEIGHT, image_size[0]), x.get(fields.WIDTH, image_size[1]))
        instances = Instances.cat(
            [
                to_instances(detections, image_size, output_size, prompt.classes)
                for detections, prompt in results
            ]
        )
        limit = self.max_detections_per_image
        if len(results) > 1 and 0 <= limit < len(instances):
            instances = instances[instances.scores.topk(limit).indices]
        described: dict[str, Any] = {fields.INSTANCES: instances}
        if fields.CAPTION in x:
            described[fields.PHRASES] = results[0][1].phrases
        return described


def rounds(prompts_per_image: list[list[Prompt]]) -> Iterator[tuple[list[int], list[Prompt]]]:
    """Ask the first prompt of every image, then the second of those that have one, and so on.

    >>> a, b, c = (Prompt(text, (), ()) for text in "abc")
    >>> [(images, [p.text for p in asked]) for images, asked in rounds([[a], [b, c]])]
    [([0, 1], ['a', 'b']), ([1], ['c'])]
    """
    for k in range(max(map(len, prompts_per_image), default=0)):
        indices = [i for i, prompts in enumerate(prompts_per_image) if k < len(prompts)]
        yield indices, [prompts_per_image[i][k] for i in indices]


def select_images(features: dict[str, Tensor], indices: list[int]) -> dict[str, Tensor]:
    """The maps of some images of the batch; no copy when it is all of them."""
    if all(len(level) == len(indices) for level in features.values()):
        return features
    return {name: level[indices] for name, level in features.items()}


def dataset_classes(
    train_names: Sequence[str], test_names: Sequence[str], training: bool
) -> Sequence[str]:
    """The class names in the metadata of the config's data sets.

    They are the first one's. An input does not tell which data set it is from, so all that are
    known to have other names are an error.

    Raises:
        ValueError: there is no data set, it has no names, or another one has other names.
    """
    names = train_names if training else test_names
    if not names:
        which = "TRAIN" if training else "TEST"
        raise ValueError(
            f"the input has no 'classes', 'caption' or 'prompt', and DATASETS.{which} is empty: "
            "say what to look for"
        )
    metadata = MetadataCatalog.get(names[0])
    if not metadata.get("thing_classes") and names[0] in DatasetCatalog:
        DatasetCatalog.get(names[0])  # a lazily registered data set learns its names by loading
    classes = metadata.get("thing_classes")
    if not classes:
        raise ValueError(f"data set {names[0]!r} has no thing_classes in its metadata")
    for other in names[1:]:
        if list(MetadataCatalog.get(other).get("thing_classes", classes)) != list(classes):
            raise ValueError(
                f"the input has no 'classes', and the data sets {names[0]!r} and {other!r} have "
                "different names: use this project's loaders (tools/train_net.py), which say of "
                "every image what it is asked, or give 'classes'"
            )
    return classes
