"""Load and save checkpoints; convert the state-dict names of GLIP and Swin files."""

from glipv2_d2.checkpoint.file_reading import Layout, detect_layout, read_checkpoint
from glipv2_d2.checkpoint.file_writing import save_state, save_weights
from glipv2_d2.checkpoint.glip_names import from_glip, to_glip
from glipv2_d2.checkpoint.loading import GLIPv2Checkpointer, load_weights
from glipv2_d2.checkpoint.swin_names import from_swin

__all__ = [
    "GLIPv2Checkpointer",
    "Layout",
    "detect_layout",
    "from_glip",
    "from_swin",
    "load_weights",
    "read_checkpoint",
    "save_state",
    "save_weights",
    "to_glip",
]
