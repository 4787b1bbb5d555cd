# tools/lazyconfig_train_net.py --config-file FILE 'settings.opts=[KEY,VALUE]'
# For Detectron2's LazyConfig: the model, data and schedule of this file.
from glipv2_d2.engine.lazy import lazy_config

_nodes = lazy_config("two_stage/mask_rcnn_R50_FPN_text.yaml")
settings, model, optimizer = (_nodes[name] for name in ("settings", "model", "optimizer"))
lr_multiplier, dataloader, train = (
    _nodes[name] for name in ("lr_multiplier", "dataloader", "train")
)
