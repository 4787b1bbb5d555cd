"""Every configuration key that GLIPv2 adds to Detectron2's, with its meaning."""

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
    _add_data_config(cfg)
    _add_solver_config(cfg)


def _add_backbone_config(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
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


def _add_head_config(cfg: CfgNode) -> None:
    cfg.MODEL.FUSED_HEAD = CfgNode()
    # A name in FUSED_HEAD_REGISTRY: FusedDynamicHead (GLIP-T, L), DynamicHead (GLIP-A, no fusion).
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

    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "GroundingRPN"
    cfg.MODEL.GROUNDING = CfgNode()
    # Width of the square anchor in strides of its level (one anchor per location).
    cfg.MODEL.GROUNDING.ANCHOR_SCALE = 8.0
    cfg.MODEL.GROUNDING.PRIOR_PROB = 0.01
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


def _add_data_config(cfg: CfgNode) -> None:
    # ResizeShortestEdge (Detectron2's, rounds) or TruncatedResizeShortestEdge (GLIP spec 1).
    cfg.INPUT.RESIZE = "ResizeShortestEdge"

    cfg.DATALOADER.PROMPT = CfgNode()
    # Names that are not in the image, asked beside those that are: at most so many ...
    cfg.DATALOADER.PROMPT.MAX_NEGATIVES = 85
    # ... and with this probability exactly so many, else a uniform number of 1 to so many.
    cfg.DATALOADER.PROMPT.FULL_NEGATIVES_PROB = 0.5
    # Names in random order (training only).
    cfg.DATALOADER.PROMPT.SHUFFLE = True


def _add_solver_config(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    # Learning rate of the language backbone and of the image backbone below its FPN, as factors.
    cfg.SOLVER.LANGUAGE_LR_FACTOR = 0.1
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    # None: that of every other weight, as in GLIP.
    cfg.SOLVER.WEIGHT_DECAY_NORM = None
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    # Exponential moving average of the weights, saved beside them; 0 turns it off.
    cfg.SOLVER.EMA_DECAY = 0.0
