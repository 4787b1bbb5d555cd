"""GLIPv2 on Detectron2: detection and grounding from class names or a caption.

Importing the package registers its models and datasets with Detectron2, and lets Detectron2's
solver train its configs. Other modules are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import detectron2 as _detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ModuleNotFoundError(
        "Detectron2 is not installed; install it with: glipv2 setup-detectron2", name="detectron2"
    ) from None

from glipv2_d2 import data as _data  # noqa: F401  registers the datasets
from glipv2_d2 import gradient_clipping as _gradient_clipping  # noqa: F401  extends the solver
from glipv2_d2 import modeling as _modeling  # noqa: F401  registers the models
from glipv2_d2.config import add_glipv2_config, get_config

if TYPE_CHECKING:
    from glipv2_d2.checkpoint import GLIPv2Checkpointer
    from glipv2_d2.engine.setup import load_config
    from glipv2_d2.prediction import Answer, Caption, Prediction
    from glipv2_d2.predictor import Predictor
    from glipv2_d2.visualization import draw_prediction

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Caption",
    "GLIPv2Checkpointer",
    "Prediction",
    "Predictor",
    "add_glipv2_config",
    "draw_prediction",
    "get_config",
    "load_config",
]

_MODULE_OF_NAME = {
    "Answer": "glipv2_d2.prediction",
    "Caption": "glipv2_d2.prediction",
    "GLIPv2Checkpointer": "glipv2_d2.checkpoint",
    "Prediction": "glipv2_d2.prediction",
    "Predictor": "glipv2_d2.predictor",
    "draw_prediction": "glipv2_d2.visualization",
    "load_config": "glipv2_d2.engine.setup",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF_NAME[name]), name)
