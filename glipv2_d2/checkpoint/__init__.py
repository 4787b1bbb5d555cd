"""GLIP and Swin files <-> our names, as tables; reading and writing files."""

from glipv2_d2.checkpoint.glip_names import from_glip, to_glip
from glipv2_d2.checkpoint.loading import GLIPv2Checkpointer, load_weights
from glipv2_d2.checkpoint.reading import Layout, read_checkpoint, recognise
from glipv2_d2.checkpoint.swin_names import from_swin
from glipv2_d2.checkpoint.writing import atomic_open, save_state, save_weights

__all__ = [
    "GLIPv2Checkpointer",
    "Layout",
    "atomic_open",
    "from_glip",
    "from_swin",
    "load_weights",
    "read_checkpoint",
    "recognise",
    "save_state",
    "save_weights",
    "to_glip",
]
