"""Detectron2's Generalized R-CNN, asked names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_roi_heads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.grounding_rpn import LANGUAGE
from glipv2_d2.modeling.heads.roi_heads import mean_words
from glipv2_d2.modeling.language import LanguageCache, build_language_backbone
from glipv2_d2.modeling.meta_arch import GLIPv2
from glipv2_d2.modeling.prompting import InputPrompts, build_input_prompts
from glipv2_d2.modeling.two_stage.asked_names import AskedNames, asking
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.tokenizer import Tokenizer


@META_ARCH_REGISTRY.register()
class OpenVocabularyRCNN(GeneralizedRCNN):
    """A Mask or Cascade R-CNN whose classes are the names that an image is asked (our choice).

    Proposals know no names. The box predictors of its ROI heads compare a region with the vectors
    of all names of its image, however many prompts the language backbone needed to read them.
    Image and text do not read each other before that.

    Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    checkpoint_excluded_prefixes = GLIPv2.checkpoint_excluded_prefixes

    @configurable
    def __init__(
        self,
        *,
        language_backbone: nn.Module,
        tokenizer: Tokenizer,
        input_prompts: InputPrompts,
        language_cache_size: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            language_backbone: TokenBatch -> TextFeatures.
            input_prompts: what is asked of an input.
            language_cache_size: prompts whose features are kept at inference; 0: none.
            kwargs: those of Detectron2's GeneralizedRCNN; ``roi_heads`` is one of
                :mod:`glipv2_d2.modeling.two_stage.roi_heads`.
        """
        super().__init__(**kwargs)
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self.input_prompts = input_prompts
        self.language_cache = LanguageCache(language_cache_size)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        language_backbone = build_language_backbone(cfg)
        shapes = backbone.output_shape()
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {
            "backbone": backbone,
            "language_backbone": language_backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(
                cfg, {**shapes, LANGUAGE: ShapeSpec(channels=language_backbone.width)}
            ),
            "tokenizer": tokenizer,
            "input_prompts": build_input_prompts(cfg, tokenizer),
            "language_cache_size": cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image."""
        if not self.training:
            return self.inference(batched_inputs)
        names_per_image = self.read(
            [self.input_prompts.all_for_training(x) for x in batched_inputs]
        )
        for x, names in zip(batched_inputs, names_per_image, strict=True):
            check_ground_truth(x, names)
        with asking(names_per_image):
            return super().forward(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Detectron2's; for a caption the results have its ``phrases``, too."""
        prompts_per_image = [self.input_prompts.for_inference(x) for x in batched_inputs]
        with asking(self.read(prompts_per_image)):
            results = super().inference(batched_inputs, detected_instances, do_postprocess)
        if do_postprocess:
            for x, prompts, result in zip(batched_inputs, prompts_per_image, results, strict=True):
                if fields.CAPTION in x:
                    result[fields.PHRASES] = prompts[0].phrases
        return results

    def read(self, prompts_per_image: Sequence[Sequence[Prompt]]) -> list[AskedNames]:
        """The names of each image, those of its prompts together.

        A prompt that several images are asked is read once. A name's vector is the mean over its
        tokens; a name without tokens, which only captions may have, is not asked.
        """
        different = {_key(prompt): prompt for prompts in prompts_per_image for prompt in prompts}
        tokens = self.tokenizer(list(different.values()))
        has_tokens = [positive_map.any(dim=1).tolist() for positive_map in tokens.positive_maps]
        tokens = tokens.to(self.device)
        language = self.language_cache(self.language_backbone, tokens)
        row_of = {key: row for row, key in enumerate(different)}

        def names_of(prompt: Prompt) -> AskedNames:
            row = row_of[_key(prompt)]
            vectors = mean_words(full_precision(language.hidden[row]), tokens.positive_maps[row])
            kept = [label for label, has_any in enumerate(has_tokens[row]) if has_any]
            return AskedNames(vectors[kept], tuple(prompt.classes[label] for label in kept))

        return [
            AskedNames.cat([names_of(prompt) for prompt in prompts])
            for prompts in prompts_per_image
        ]


def _key(prompt: Prompt) -> tuple[Any, ...]:
    """What the vectors of a prompt's labels depend on."""
    return prompt.text, prompt.spans


def check_ground_truth(x: dict[str, Any], names: AskedNames) -> None:
    """Raise a ValueError where an input has boxes of classes that it is not asked."""
    gt_classes = set(x[fields.INSTANCES].gt_classes.tolist())
    if missing := sorted(gt_classes - set(names.classes)):
        raise ValueError(
            f"gt_classes {missing} of {x.get(fields.FILE_NAME, 'an image')!r} are not among the "
            f"classes that it is asked, {sorted(names.classes)}: a mapper has to drop such boxes "
            "or ask for them. A name without readable words, or one that repeats another, cannot "
            "be asked"
        )
