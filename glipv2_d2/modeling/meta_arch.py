"""GLIPv2: the whole data path on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from glipv2_d2.modeling.fusion import build_fused_head
from glipv2_d2.modeling.heads.answer import AnswerHead, build_answer_head
from glipv2_d2.modeling.heads.caption import CaptionHead, build_caption_head
from glipv2_d2.modeling.heads.grounding_rpn import LANGUAGE
from glipv2_d2.modeling.heads.inter_image import InterImageHead, build_inter_image_head
from glipv2_d2.modeling.heads.masked_language import (
    MaskedLanguageHead,
    build_masked_language_head,
)
from glipv2_d2.modeling.heads.region_reader import build_region_reader
from glipv2_d2.modeling.heads.roi_heads import build_grounding_roi_heads
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.language import LanguageCache, build_language_backbone
from glipv2_d2.modeling.orders import judge_in_orders
from glipv2_d2.modeling.postprocess import DetectionsPerImage
from glipv2_d2.modeling.prompting import InputPrompts, build_input_prompts
from glipv2_d2.modeling.results import Found, image_results, still_wanted
from glipv2_d2.modeling.rounds import (
    different_images,
    rounds,
    select_images,
    select_sizes,
)
from glipv2_d2.modeling.saying import say, text_losses
from glipv2_d2.modeling.tasks import InputTasks
from glipv2_d2.structures import Prompt, Reading, TextFeatures, TokenBatch, fields
from glipv2_d2.text.tokenizer import Tokenizer


@META_ARCH_REGISTRY.register()
class GLIPv2(nn.Module):
    """One model for localization and understanding: regions matched with words.

    Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    # Swapped by name, and called as their registries say.
    language_backbone: Any
    fused_head: Any
    proposal_generator: Any
    region_reader: Any

    checkpoint_loss_prefixes = ("inter_image.", "masked_language.")
    """Names of weights that only a loss reads."""

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
        roi_heads: nn.Module | None = None,
        answer: AnswerHead | None = None,
        caption: CaptionHead | None = None,
        region_reader: Any = None,
        ground_by: str = "mask",
        scores_fused_words: bool = True,
        language_cache_size: int = 0,
        max_detections_per_image: int = -1,
    ) -> None:
        """
        Args:
            backbone: images -> pyramid, finest level first.
            language_backbone: TokenBatch -> TextFeatures.
            fused_head: (pyramid, TextFeatures) -> the same, fused.
            proposal_generator: called as :class:`~glipv2_d2.modeling.heads.GroundingRPN` is.
            input_prompts: what is asked of an input.
            pixel_mean, pixel_std: per channel of the input, in the order of ``INPUT.FORMAT``.
            inter_image: gives L_inter; None: that loss is left out.
            masked_language: hides words in training and gives L_mlm; None: no word is hidden.
            roi_heads: gives detections their masks, called as
                :class:`~glipv2_d2.modeling.heads.GroundingROIHeads` is; None: they have none.
            answer: answers questions; None: none are asked.
            caption: describes images; None: none are described.
            region_reader: lets words that answer or describe read regions, see
                :class:`~glipv2_d2.modeling.heads.region_reader.RegionReader`; None: they only read
                the maps.
            ground_by: see :class:`~glipv2_d2.modeling.tasks.InputTasks`.
            scores_fused_words: regions are scored against fused words; else against those that
                the language backbone gave.
            language_cache_size: prompts whose features are kept at inference; 0: none.
            max_detections_per_image: for an image that was asked several prompts; -1: all.

        Raises:
            ValueError: scores are to be averaged or regions to be read, and the proposal generator
                does not offer it; or words are to be said, and the fused head does not show them
                the image.
        """
        if input_prompts.num_orders > 1 and not hasattr(proposal_generator, "judge"):
            raise ValueError(
                f"MODEL.PROMPT.NUM_ORDERS is {input_prompts.num_orders}, but the "
                f"MODEL.PROPOSAL_GENERATOR {type(proposal_generator).__name__} has no judge() and "
                "detect() as GroundingRPN has: set it to 0"
            )
        says_words = answer is not None or caption is not None
        if says_words and not getattr(fused_head, "words_read_image", False):
            raise ValueError(
                "MODEL.ANSWER and MODEL.CAPTION need words that have read the image, but those of "
                f"MODEL.FUSED_HEAD.NAME {type(fused_head).__name__} have not: set their WEIGHT to "
                "0, or choose FusedDynamicHead or ClassifierFusedDynamicHead"
            )
        offers_regions = all(hasattr(proposal_generator, name) for name in ("judge", "match"))
        if region_reader is not None and not offers_regions:
            raise ValueError(
                "MODEL.REGION_READER has a NAME, but the MODEL.PROPOSAL_GENERATOR "
                f"{type(proposal_generator).__name__} has no judge() and match() as GroundingRPN "
                "has: set the NAME to ''"
            )
        super().__init__()
        self.backbone = backbone
        self.language_backbone = language_backbone
        self.fused_head = fused_head
        self.proposal_generator = proposal_generator
        self.inter_image = inter_image
        self.masked_language = masked_language
        self.roi_heads = roi_heads
        self.answer = answer
        self.caption = caption
        self.region_reader = region_reader
        self.tokenizer = tokenizer
        self.input_prompts = input_prompts
        self.tasks = InputTasks(
            input_prompts=input_prompts,
            tokenizer=tokenizer,
            can_answer=answer is not None,
            can_describe=caption is not None,
            ground_by=ground_by,
            finds_nouns=getattr(language_backbone, "reads_nouns_alone", False),
        )
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
            "input_prompts": build_input_prompts(
                cfg, tokenizer, num_orders=cfg.MODEL.PROMPT.NUM_ORDERS, takes_negatives=True
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "inter_image": build_inter_image_head(cfg, shapes, width),
            "masked_language": build_masked_language_head(cfg, tokenizer, language_backbone),
            "roi_heads": build_grounding_roi_heads(cfg, shapes, width),
            "answer": build_answer_head(cfg, tokenizer, language_backbone),
            "caption": build_caption_head(cfg, tokenizer, language_backbone),
            "region_reader": build_region_reader(cfg, shapes, tokenizer, language_backbone),
            "ground_by": cfg.MODEL.ANSWER.GROUND_BY,
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

    @property
    def checkpoint_optional_prefixes(self) -> tuple[str, ...]:
        """Names of weights that files and models may have or not.

        A part names its own in its ``checkpoint_optional``.
        """
        return (
            *(
                *self.checkpoint_loss_prefixes,
                "roi_heads.",
                "answer.",
                "caption.",
                "region_reader.",
            ),
            *(
                f"{name}.{prefix}"
                for name, part in self.named_children()
                for prefix in getattr(part, "checkpoint_optional", ())
            ),
        )

    @property
    def learns_only_masks(self) -> bool:
        """Whether all but the ROI heads is frozen: then no other loss would teach anything."""
        return self.roi_heads is not None and not any(
            parameter.requires_grad
            for name, part in self.named_children()
            if name != "roi_heads"
            for parameter in part.parameters()
        )

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image."""
        if not self.training:
            return self.inference(batched_inputs)
        all_images = self.preprocess_image(batched_inputs)
        tasks = self.tasks.for_training(batched_inputs)
        tokens = self.tokenizer([asked.prompt for asked in tasks.to_find]).to(self.device)
        gt_instances = [instances.to(self.device) for instances in tasks.gt_instances]
        if self.masked_language is not None:
            tokens, masked_words = self.masked_language.mask(tokens, gt_instances)

        # Embed each modality alone:
        all_features = self.backbone(all_images.tensor)
        language = self.language_cache(self.language_backbone, tokens)

        # Let them read each other, where something is to be found:
        images = select_sizes(all_images, tasks.images_to_search)
        features = select_images(all_features, tasks.images_to_search)
        fused_features, fused_language = self.fused_head(features, language)

        # Score regions against words, and place the boxes:
        words = fused_language if self.scores_fused_words else language
        if self.learns_only_masks:
            return self.mask_losses(images, features, fused_features, words, tokens, gt_instances)
        targets, losses = self.proposal_generator(
            images, fused_features, words, tokens, gt_instances
        )

        # Contrast regions with the words of all images, and guess the masked words:
        if self.inter_image is not None:
            losses |= self.inter_image(features, language, tokens, gt_instances, targets)
        if self.masked_language is not None:
            losses |= self.masked_language(fused_language, masked_words)

        # Tell which pixels of the boxes their words mean:
        if self.roi_heads is not None:
            losses |= self.mask_losses(
                images, features, fused_features, words, tokens, gt_instances
            )

        # Answer questions and describe images:
        if tasks.finds_nothing:
            losses = {name: 0 * loss for name, loss in losses.items()}
        reading = Reading(fused_features, fused_language, words, tokens)
        return losses | text_losses(self, all_images, all_features, reading, tasks)

    def mask_losses(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        fused_features: dict[str, Tensor],
        words: TextFeatures,
        tokens: TokenBatch,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of the masks of true boxes and of boxes that are found, as at inference.

        For these the proposal generator is asked once more, whichever it is. Ours takes three
        small products for that, on maps that are there.
        """
        assert self.roi_heads is not None
        with torch.no_grad():
            detections, _ = self.proposal_generator(images, fused_features, words, tokens)
        _, losses = self.roi_heads(
            features, fused_features, words, tokens, detections, gt_instances
        )
        return losses

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same path, with the image's part walked once for all that it is asked."""
        shown, row_of = different_images(batched_inputs)
        images = self.preprocess_image(shown)
        features = self.backbone(images.tensor)
        said = say(self, batched_inputs, images, features, row_of)
        prompts_per_image = [
            self.tasks.prompts_to_find(x, texts.get(fields.PROMPT))
            for x, texts in zip(batched_inputs, said, strict=True)
        ]

        found_per_image: list[list[Found]] = [[] for _ in batched_inputs]
        limit = self.max_detections_per_image
        for indices, prompts in rounds(prompts_per_image):
            rows = [row_of[i] for i in indices]
            selected = select_images(features, rows)
            reading = self.read(selected, prompts)
            detections = self.detect(select_sizes(images, rows), selected, prompts, reading)
            if self.roi_heads is not None:
                detections = [
                    still_wanted(
                        found,
                        found_per_image[i],
                        num_prompts=len(prompts_per_image[i]),
                        limit=limit,
                    )
                    for i, found in zip(indices, detections, strict=True)
                ]
                detections, _ = self.roi_heads(selected, *reading.fused, detections)
            for i, found, prompt in zip(indices, detections, prompts, strict=True):
                found_per_image[i].append((found, prompt))
        return [
            image_results(x, found, images.image_sizes[row], limit) | texts
            for x, found, row, texts in zip(
                batched_inputs, found_per_image, row_of, said, strict=True
            )
        ]

    def read(self, features: dict[str, Tensor], prompts: list[Prompt]) -> Reading:
        """Let the maps of N images and a prompt for each read each other."""
        tokens = self.tokenizer(prompts).to(self.device)
        language = self.language_cache(self.language_backbone, tokens)
        fused_features, fused_language = self.fused_head(features, language)
        words = fused_language if self.scores_fused_words else language
        return Reading(fused_features, fused_language, words, tokens)

    def detect(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        prompts: list[Prompt],
        reading: Reading,
    ) -> list[DetectionsPerImage]:
        """What N images show of a prompt each; of class names in every order that is to be asked.

        Args:
            images: for their sizes without padding.
            features: before fusion.
            reading: what :meth:`read` gave for them.
        """
        if self.input_prompts.num_orders > 1:
            judged = judge_in_orders(self, features, prompts, reading)
            return self.proposal_generator.detect(judged, prompts, images.image_sizes)
        detections, _ = self.proposal_generator(images, *reading.fused)
        return detections

    def judge(self, reading: Reading) -> list[LabelScores]:
        """What every location of every image says of its names, before anything is a detection."""
        return self.proposal_generator.judge(*reading.fused)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, then pad right and bottom with zeros to the batch's largest image."""
        images = [x[fields.IMAGE].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
