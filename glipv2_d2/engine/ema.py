"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.engine import HookBase
from torch import Tensor, nn


class ExponentialMovingAverage:
    """``average = decay * average + (1 - decay) * value``, after each step, from the first on.

    As in GLIP (GLIP spec 17): over parameters and buffers alike, without bias correction. Integer
    buffers are copied. Frozen parameters are left out: they are their own average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            decay: in (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(
                f"SOLVER.EMA_DECAY is {decay}; it lies between 0 and 1, 0 turns it off"
            )
        self.decay = decay
        self.model = model
        self.average: dict[str, Tensor] = {}

    def _values(self) -> dict[str, Tensor]:
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        return {name: v for name, v in self.model.state_dict().items() if name not in frozen}

    def start(self) -> None:
        """Begin with the model as it is, unless an average has been loaded."""
        if not self.average:
            self.average = {name: value.clone() for name, value in self._values().items()}

    def update(self) -> None:
        """Take the model's present values in."""
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
            ValueError: the names are not this model's.
        """
        values = self._values()
        if state_dict.keys() != values.keys():
            odd = sorted(state_dict.keys() ^ values.keys())
            raise ValueError(
                f"model_ema has not the weights of this model, {len(odd)} names differ: {odd[:5]}"
            )
        self.average = {name: state_dict[name].to(v, copy=True) for name, v in values.items()}


class EMAHook(HookBase):
    """Updates an average after every step. Stands before the hook that writes checkpoints."""

    def __init__(self, average: ExponentialMovingAverage) -> None:
        self.average = average

    def before_train(self) -> None:
        # Not earlier: weights are loaded after hooks are made.
        self.average.start()

    def after_step(self) -> None:
        self.average.update()
