"""Every configuration key that GLIPv2 adds to Detectron2's, with its meaning."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import detectron2.config
from detectron2.config import CfgNode


def add_glipv2_config(cfg: CfgNode) -> None:
    """Add the keys of this project to ``cfg`` (in place). Values are GLIP-T's.

    Sizes come from the released GLIP configurations (GLIP spec 21).
    """
    cfg.MODEL.META_ARCHITECTURE = "GLIPv2"
    # B, G, R, in the range 0..255
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
    cfg.MODEL.PIXEL_STD = [57.375, 57.120, 58.395]
    _add_backbone_config(cfg)
    _add_language_config(cfg)
    _add_head_config(cfg)
    _add_mask_config(cfg)
    _add_pretraining_config(cfg)
    _add_text_task_config(cfg)
    _add_tuning_config(cfg)
    _add_data_config(cfg)
    _add_solver_config(cfg)
    _add_test_config(cfg)


def _add_backbone_config(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    # Recompute the image backbone's blocks in the backward pass: less memory, more time.
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = False
    cfg.MODEL.FPN.IN_FEATURES = ["p1", "p2", "p3"]
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    # DropBlock on the merged P3 and P4 maps, training only (GLIP spec 4). 0 turns it off.
    cfg.MODEL.FPN.DROP_BLOCK_PROB = 0.3
    cfg.MODEL.FPN.DROP_BLOCK_SIZE = 3

    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    # Detectron2's count: 0 freezes the patch embedding, 2 also the first stage; -1 nothing.
    cfg.MODEL.SWIN.FROZEN_STAGES = -1

    # Any model of timm with features_only (build_timm_fpn_backbone), or a frozen classifier of it
    # (build_timm_classifier_fpn_backbone, which reads NAME and WEIGHTS only) ...
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # "" random, "timm" what timm's own pretrained=True fetches, or a file, or "package:NAME"
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_INDICES = [2, 3, 4]
    # Keep batch norm at its stored statistics and affine values.
    cfg.MODEL.TIMM.FREEZE_BN = True

    # ... or of transformers' AutoBackbone (build_auto_fpn_backbone).
    cfg.MODEL.AUTO_BACKBONE = CfgNode()
    # A local directory or a hub name.
    cfg.MODEL.AUTO_BACKBONE.NAME = "microsoft/swin-tiny-patch4-window7-224"
    cfg.MODEL.AUTO_BACKBONE.PRETRAINED = False
    cfg.MODEL.AUTO_BACKBONE.OUT_FEATURES = ["stage2", "stage3", "stage4"]


def _add_language_config(cfg: CfgNode) -> None:
    cfg.MODEL.LANGUAGE_BACKBONE = CfgNode()
    # A name in LANGUAGE_BACKBONE_REGISTRY.
    cfg.MODEL.LANGUAGE_BACKBONE.NAME = "BertLanguageBackbone"
    # Sizes and tokenizer: a local directory, "package:NAME" or a hub name. bert-base-uncased's are
    # part of this package.
    cfg.MODEL.LANGUAGE_BACKBONE.MODEL = "bert-base-uncased"
    # Weights: "" (random, or to come from MODEL.WEIGHTS), a local directory, "package:NAME" or a
    # hub name.
    cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS = ""
    # A frozen encoder gets no gradient; where WEIGHTS names its source, checkpoints leave it out.
    cfg.MODEL.LANGUAGE_BACKBONE.FREEZE = False
    # Prompts whose features are kept at inference; 0 turns the cache off.
    cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE = 1024

    cfg.MODEL.PROMPT = CfgNode()
    # Between class names; none after the last (GLIP spec 2.1).
    cfg.MODEL.PROMPT.SEPARATOR = ". "
    # Tokens of one prompt, [CLS] and [SEP] included.
    cfg.MODEL.PROMPT.MAX_TOKENS = 256
    # Names of one prompt at inference; 0: as many as the tokens allow.
    cfg.MODEL.PROMPT.MAX_CLASSES = 0
    # Orders in which the names of a prompt are asked at inference. 0: once, as the caller lists
    # them. k: in k orders that the caller's does not change (sorted, then k - 1 random ones), with
    # the mean of what every location says; k times the cost of all but the image backbone.
    cfg.MODEL.PROMPT.NUM_ORDERS = 0


def _add_head_config(cfg: CfgNode) -> None:
    cfg.MODEL.FUSED_HEAD = CfgNode()
    # A name in FUSED_HEAD_REGISTRY: FusedDynamicHead (GLIP-T, L), DynamicHead (GLIP-A, no fusion),
    # or one of the small models, see modeling/fusion.
    cfg.MODEL.FUSED_HEAD.NAME = "FusedDynamicHead"
    cfg.MODEL.FUSED_HEAD.NUM_BLOCKS = 6
    cfg.MODEL.FUSED_HEAD.GROUP_NORM_GROUPS = 16
    # Bi-directional attention: width of all heads together, heads, dropout on the attention maps.
    cfg.MODEL.FUSED_HEAD.FUSION_DIM = 2048
    cfg.MODEL.FUSED_HEAD.FUSION_HEADS = 8
    cfg.MODEL.FUSED_HEAD.FUSION_DROPOUT = 0.1
    # The head's own language layers.
    cfg.MODEL.FUSED_HEAD.LANGUAGE_HEADS = 12
    cfg.MODEL.FUSED_HEAD.LANGUAGE_FFN_DIM = 3072
    cfg.MODEL.FUSED_HEAD.LANGUAGE_DROPOUT = 0.1
    # Recompute the blocks in the backward pass: less memory, more time.
    cfg.MODEL.FUSED_HEAD.ACTIVATION_CHECKPOINTING = False

    # GroundingRPN (GLIP's) or ComparingGroundingRPN, which also tells "the left apple".
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "GroundingRPN"
    cfg.MODEL.GROUNDING = CfgNode()
    # Width of the square anchor in strides of its level (one anchor per location).
    cfg.MODEL.GROUNDING.ANCHOR_SCALE = 8.0
    cfg.MODEL.GROUNDING.PRIOR_PROB = 0.01
    # A name in REGION_WORD_SCORE_REGISTRY: DotProductScore (GLIP's) or CosineScore.
    # Two-stage box predictors read it, PRIOR_PROB and LOG_SCALE, too.
    cfg.MODEL.GROUNDING.REGION_WORD = "DotProductScore"
    # Regions are scored against fused words, or against the words as the text encoder gave them:
    # GLIP's USE_FUSED_FEATURES_DOT_PRODUCT.
    cfg.MODEL.GROUNDING.FUSED_WORDS = True
    # Logarithm of the temperature that region-word products are divided by, to start from.
    cfg.MODEL.GROUNDING.LOG_SCALE = 0.0
    # Nearest anchors per level that ATSS considers for a ground truth.
    cfg.MODEL.GROUNDING.ATSS_TOPK = 9
    cfg.MODEL.GROUNDING.FOCAL_ALPHA = 0.25
    cfg.MODEL.GROUNDING.FOCAL_GAMMA = 2.0
    cfg.MODEL.GROUNDING.TOKEN_LOSS_WEIGHT = 1.0
    cfg.MODEL.GROUNDING.BOX_LOSS_WEIGHT = 2.0
    cfg.MODEL.GROUNDING.CENTERNESS_LOSS_WEIGHT = 1.0
    # How token scores become a label's score: mean, max or power (geometric mean).
    cfg.MODEL.GROUNDING.SCORE_AGGREGATION = "mean"
    cfg.MODEL.GROUNDING.SCORE_THRESH = 0.05
    cfg.MODEL.GROUNDING.PRE_NMS_TOPK = 1000
    cfg.MODEL.GROUNDING.NMS_THRESH = 0.6
    # Kept per prompt. TEST.DETECTIONS_PER_IMAGE caps an image that was asked several prompts
    # (-1: all).
    cfg.MODEL.GROUNDING.DETECTIONS_PER_PROMPT = 100


def _add_mask_config(cfg: CfgNode) -> None:
    # Masks of boxes; built where Detectron2's MODEL.MASK_ON is set. Sizes that the released code
    # leaves open are Mask R-CNN's.
    cfg.MODEL.ROI_HEADS.NAME = "GroundingROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ROI_MASK_HEAD.NAME = "HourglassMaskHead"
    # The maps that boxes are cut from: "fused", or "fpn", as they were before.
    cfg.MODEL.ROI_MASK_HEAD.MAPS = "fused"
    # In a row, on ROI_MASK_HEAD.CONV_DIM channels, to which the maps are brought.
    cfg.MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES = 4
    # Boxes of an image whose masks are learned: the true ones, then what is found and overlaps one
    # by ROI_HEADS.IOU_THRESHOLDS; a random choice where there are more.
    cfg.MODEL.ROI_MASK_HEAD.MAX_REGIONS_PER_IMAGE = 128
    cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHT = 1.0


def _add_pretraining_config(cfg: CfgNode) -> None:
    # L_inter: regions against the words of all images of all GPUs, before fusion. Weight 0: not
    # built, as in GLIP.
    cfg.MODEL.INTER_IMAGE = CfgNode()
    cfg.MODEL.INTER_IMAGE.WEIGHT = 0.0
    # Width of the space in which regions and words are compared.
    cfg.MODEL.INTER_IMAGE.DIM = 64
    # Positive anchors of an image that take part, a random choice of them.
    cfg.MODEL.INTER_IMAGE.MAX_REGIONS_PER_IMAGE = 100
    # To start from; it is learned.
    cfg.MODEL.INTER_IMAGE.TEMPERATURE = 0.07

    # L_mlm: masked words guessed from the fused text. Weight 0: not built, no word is masked.
    cfg.MODEL.MLM = CfgNode()
    cfg.MODEL.MLM.WEIGHT = 0.0
    # How many of the words are chosen; 80 % of these are masked, 10 % replaced, 10 % left.
    cfg.MODEL.MLM.PROB = 0.15
    # What the guess is compared with: "own", rows of the head (GLIP), or "tied", the text
    # encoder's word embeddings.
    cfg.MODEL.MLM.DECODER = "own"


def _add_text_task_config(cfg: CfgNode) -> None:
    # Answers to questions, from the fused words. Weight of the loss; 0: not built.
    cfg.MODEL.ANSWER = CfgNode()
    # "AnswerHead" | "PointingAnswerHead" (also answers with the name in REGION_READER.NAMES_FILE of
    # the region that a question asks for; with SCORE "words" these names join the answers).
    cfg.MODEL.ANSWER.NAME = "AnswerHead"
    cfg.MODEL.ANSWER.WEIGHT = 0.0
    # The answers that there are: a file with one per line (tools/answer_vocabulary.py), which a
    # package may carry ("package:NAME/PATH"), or a list. With neither those in the metadata
    # ("answers") of the data sets.
    cfg.MODEL.ANSWER.FILE = ""
    cfg.MODEL.ANSWER.ANSWERS = []
    # "classes": weights of its own for every answer; "words": answers are matched by their text, so
    # that lists which were never seen in training can be asked, too.
    cfg.MODEL.ANSWER.SCORE = "classes"
    # Where an answer is to be found, it is written as a hidden word behind the question ("mask"),
    # as it is learned from grounded questions; or in its own words ("words"), for models that have
    # learned from other texts only where things are.
    cfg.MODEL.ANSWER.GROUND_BY = "mask"

    # Words that answer or describe read the regions of the image, as if these were words. A name in
    # REGION_READER_REGISTRY, RegionReader or ClassifierRegionReader (glipv2-mini); "": they only
    # read the maps, as in GLIPv2.
    cfg.MODEL.REGION_READER = CfgNode()
    cfg.MODEL.REGION_READER.NAME = ""
    # What is asked for to find things whose names are not known, and how many of them are read.
    cfg.MODEL.REGION_READER.PROMPT = "an object"
    cfg.MODEL.REGION_READER.NUM_REGIONS = 16
    # Names, one per line, with which regions are compared: they are read as a mean of those that
    # they match. "": with none.
    cfg.MODEL.REGION_READER.NAMES_FILE = ""
    # Of two boxes that overlap by more than this IoU one is read.
    cfg.MODEL.REGION_READER.NMS_THRESH = 0.5
    cfg.MODEL.REGION_READER.NUM_LAYERS = 2
    cfg.MODEL.REGION_READER.HEADS = 12
    cfg.MODEL.REGION_READER.FFN_DIM = 768
    cfg.MODEL.REGION_READER.DROPOUT = 0.1

    # Captions, word by word from left to right. Weight of the loss; 0: not built.
    cfg.MODEL.CAPTION = CfgNode()
    # "CaptionHead" | "NamingCaptionHead" (also writes the names in REGION_READER.NAMES_FILE that
    # regions match).
    cfg.MODEL.CAPTION.NAME = "CaptionHead"
    cfg.MODEL.CAPTION.WEIGHT = 0.0
    # "tied" or "own", as MLM.DECODER.
    cfg.MODEL.CAPTION.DECODER = "tied"
    # How captions are written. Beams; 1 takes the likeliest word each time.
    cfg.MODEL.CAPTION.BEAM_SIZE = 5
    # Tokens (pieces of words) of a caption.
    cfg.MODEL.CAPTION.MIN_LENGTH = 1
    cfg.MODEL.CAPTION.MAX_LENGTH = 30
    # Captions are compared by their log-probability over their length to this power.
    cfg.MODEL.CAPTION.LENGTH_PENALTY = 1.0
    # What every caption begins with.
    cfg.MODEL.CAPTION.PREFIX = ""


def _add_tuning_config(cfg: CfgNode) -> None:
    # Fine-tuning of MODEL.WEIGHTS by a policy.
    cfg.MODEL.TUNING = CfgNode()
    # A name in TUNING_REGISTRY: full, linear_probe, prompt, text_only, lora, mask_heads,
    # comparison, text_heads. "": train what the config does not freeze and write no delta.
    cfg.MODEL.TUNING.NAME = ""
    # A delta file, the outcome of a fine-tuning, to be loaded on top of MODEL.WEIGHTS. It brings
    # its policy and settings along.
    cfg.MODEL.TUNING.DELTA = ""

    # prompt: tokens that get a vector of their own.
    cfg.MODEL.TUNING.PROMPT = CfgNode()
    cfg.MODEL.TUNING.PROMPT.NUM_ROWS = 256

    # lora: rank of the products, their factor ALPHA / RANK, dropout on what they read, and own
    # names of the layers. The defaults are Swin's, the language layers' and the fusion's.
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
    # ResizeShortestEdge (Detectron2's, rounds) or TruncatedResizeShortestEdge (GLIP spec 1).
    cfg.INPUT.RESIZE = "ResizeShortestEdge"

    # Questions and captions about one image that are learned together, so that it is read once for
    # all of them; 1: each alone. Those of several data sets, too, where these have the same
    # DATASETS.TRAIN_REPEAT_FACTOR. IMS_PER_BATCH counts images.
    cfg.DATALOADER.TEXTS_PER_IMAGE = 1
    cfg.DATALOADER.PROMPT = CfgNode()
    # Names that are not in the image, asked beside those that are: at most so many ...
    cfg.DATALOADER.PROMPT.MAX_NEGATIVES = 85
    # ... and with this probability exactly so many, else a uniform number of 1 to so many.
    cfg.DATALOADER.PROMPT.FULL_NEGATIVES_PROB = 0.5
    # Names in random order (training only).
    cfg.DATALOADER.PROMPT.SHUFFLE = True
    # Captions with pseudo boxes: other captions of the data set around a caption, at most so many,
    cfg.DATALOADER.PROMPT.MAX_NEGATIVE_CAPTIONS = 19
    # with this probability exactly so many, with the next one a uniform number from 1 to so many,
    # else none (GLIP paper, appendix C.1).
    cfg.DATALOADER.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 0.3
    cfg.DATALOADER.PROMPT.RANDOM_NEGATIVE_CAPTIONS_PROB = 0.3

    # Your own data sets, without code: {name: my_train, json: my/train.json, images: my/train}.
    # Then name them in TRAIN and TEST. An entry may have a format: coco (default), grounding
    # (MDETR's form), captions (JSON lines), webdataset (shards: "cc3m-{00000..00331}.tar" in place
    # of json and images), captioning (COCO's captions), vqa (with two files more, questions and
    # answers), grounded_text (questions or captions with boxes). See datasets/README.md.
    cfg.DATASETS.CUSTOM = []
    # How often an image is seen in a round through the data: [[name, factor], ...], 1 for the
    # others. The name and form of the key are Detectron2's.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []


def _add_solver_config(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    # Learning rate of the language backbone and of the image backbone below its FPN, as factors.
    cfg.SOLVER.LANGUAGE_LR_FACTOR = 0.1
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Those of the fused head, and of the heads for answers and captions, which start anew.
    cfg.SOLVER.FUSION_LR_FACTOR = 1.0
    cfg.SOLVER.TEXT_HEAD_LR_FACTOR = 1.0
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    # None: that of every other weight, as in GLIP.
    cfg.SOLVER.WEIGHT_DECAY_NORM = None
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    # Fine-tuning follows a metric of the evaluations (TEST.EVAL_PERIOD), e.g. "bbox/AP": training
    # ends with the weights that were best in it, model_best.pth. "": the last weights.
    cfg.SOLVER.BEST_METRIC = ""
    # LR_SCHEDULER_NAME WarmupPlateauLR: times GAMMA after more evaluations than these without a
    # new best.
    cfg.SOLVER.PLATEAU_PATIENCE = 3
    # Stop after so many evaluations without a new best; 0 goes on.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0
    # Passes that one step of the optimizer sums up: IMS_PER_BATCH images in the memory of
    # IMS_PER_BATCH / ACCUMULATE. The gradient is the mean of the passes' (each loss is normalised
    # within its pass, and L_inter compares the images of one pass). Schedules count steps, so that
    # no other key has to change.
    cfg.SOLVER.ACCUMULATE = 1
    # With AMP.ENABLED: bf16 (also on a CPU), or fp16 with scaled gradients (CUDA only).
    cfg.SOLVER.AMP.PRECISION = "fp16"
    # A loss or gradient that is no finite number: "stop", or "skip" the step and count it as
    # num_skipped_steps; 21 in a row stop as well. Both name the images.
    cfg.SOLVER.NON_FINITE = "stop"
    # Exponential moving average of the weights, saved beside them; 0 turns it off.
    cfg.SOLVER.EMA_DECAY = 0.0


def _add_test_config(cfg: CfgNode) -> None:
    # Of evaluation and the Predictor: fp32, or autocast to bf16 or (on CUDA) fp16.
    cfg.TEST.PRECISION = "fp32"
    # AP by packages that are to be installed: COCO's by faster-coco-eval, LVIS's by hotcoco.
    # Several times as fast and, where we measured, equal to five decimals. Papers count the slow
    # ones' numbers.
    cfg.TEST.FAST_EVAL = False
    # PhraseCut: detections of a phrase with at least this score are part of its region.
    cfg.TEST.PHRASECUT_SCORE_THRESH = 0.5


def configurable(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate ``__init__`` with Detectron2's ``configurable``, and let errors name config keys.

    A class names its arguments in a ValueError. Where ``from_config`` supplied them, the message
    also gets the keys that set those arguments, from the class attribute ``config_keys``
    (argument -> key).
    """
    from_arguments = detectron2.config.configurable(init)

    @functools.wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            from_arguments(self, *args, **kwargs)
        except ValueError as error:
            if not any(isinstance(x, CfgNode) for x in (*args, kwargs.get("cfg"))):
                raise
            raise with_config_keys(error, getattr(type(self), "config_keys", {})) from error

    return build


def with_config_keys(error: ValueError, config_keys: Mapping[str, str]) -> ValueError:
    """Append to an error the config keys of the arguments that its message names.

    >>> with_config_keys(ValueError("topk is 0"), {"topk": "MODEL.GROUNDING.ATSS_TOPK"})
    ValueError('topk is 0 (config: MODEL.GROUNDING.ATSS_TOPK)')
    """
    message = str(error)
    named = [key for name, key in config_keys.items() if re.search(rf"\b{name}\b", message)]
    return ValueError(f"{message} (config: {', '.join(named)})") if named else error
