"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from glipv2_d2.config import with_config_keys


class ExponentialMovingAverage:
    """``average = decay * average + (1 - decay) * value``, after every step.

    As in GLIP (glip_reference.md 17): over parameters and buffers, without bias correction. Integer
    buffers are copied. Frozen parameters are excluded.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            decay: in (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(
                f"decay is {decay}; it must be between 0 and 1, or 0 to disable the average"
            )
        self.decay = decay
        self.model = model
        self.average: dict[str, Tensor] = {}

    def _values(self) -> dict[str, Tensor]:
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        return {name: v for name, v in self.model.state_dict().items() if name not in frozen}

    def start(self) -> None:
        """Initialise the average with the model's values, unless one has been loaded."""
        if not self.average:
            self.average = {name: value.clone() for name, value in self._values().items()}

    def update(self) -> None:
        """Update the average with the model's current values."""
        for name, value in self._values().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - self.decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ValueError: the names differ from this model's.
        """
        values = self._values()
        if state_dict.keys() != values.keys():
            differing = sorted(state_dict.keys() ^ values.keys())
            raise ValueError(
                f"model_ema does not match this model: {len(differing)} names differ, "
                f"{differing[:5]}"
            )
        self.average = {name: state_dict[name].to(v, copy=True) for name, v in values.items()}


def build_ema(cfg: CfgNode, model: nn.Module) -> ExponentialMovingAverage:
    """Build the average of ``SOLVER.EMA_DECAY``.

    Raises:
        ValueError: the decay is not in (0, 1).
    """
    try:
        return ExponentialMovingAverage(model, cfg.SOLVER.EMA_DECAY)
    except ValueError as error:
        raise with_config_keys(error, {"decay": "SOLVER.EMA_DECAY"}) from error


class EMAHook(HookBase):
    """Updates an average after every step. Register it before the checkpointer."""

    def __init__(self, average: ExponentialMovingAverage) -> None:
        self.average = average

    def before_train(self) -> None:
        # Weights are loaded after the hooks are built.
        self.average.start()

    def after_step(self) -> None:
        self.average.update()
