"""Steps of the optimizer: their passes, in which precision, and what if a loss is no number.

A *pass* is one forward and backward through the model with one batch of the data loader.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.engine.precision import PRECISIONS
from glipv2_d2.modeling.losses.across_gpus import mean_over_gpus
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

# What SOLVER.NON_FINITE says -> whether such steps are skipped.
SKIPS = {"stop": False, "skip": True}
# More skipped steps in a row are no bad images, but a model that is lost (our choice).
MAX_SKIPS_IN_A_ROW = 20


def images_per_pass(cfg: CfgNode) -> int:
    """Images of one pass, all processes together: ``IMS_PER_BATCH / ACCUMULATE``.

    Raises:
        ValueError: the images of a step cannot be shared out evenly.
    """
    images, passes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    processes = comm.get_world_size()
    if passes < 1 or images < 1 or images % (passes * processes) != 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}, SOLVER.ACCUMULATE {passes}, with {processes} "
            "process(es): every process needs as many images in every pass, so give a multiple of "
            f"{max(1, passes) * processes} images and at least one pass"
        )
    return images // passes


def build_multi_pass_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: TrainLoader, optimizer: torch.optim.Optimizer
) -> MultiPassTrainer:
    """The trainer of ``SOLVER.ACCUMULATE``, ``SOLVER.AMP`` and ``SOLVER.NON_FINITE``.

    Args:
        data_loader: of batches of :func:`images_per_pass`.

    Raises:
        ValueError: a key has a value that does not exist.
    """
    if cfg.SOLVER.NON_FINITE not in SKIPS:
        raise ValueError(
            f"SOLVER.NON_FINITE is {cfg.SOLVER.NON_FINITE!r}; use one of {list(SKIPS)}"
        )
    return MultiPassTrainer(
        model=model,
        data_loader=data_loader,
        optimizer=optimizer,
        num_passes=cfg.SOLVER.ACCUMULATE,
        precision=_precision(cfg),
        skips_non_finite=SKIPS[cfg.SOLVER.NON_FINITE],
    )


def _precision(cfg: CfgNode) -> torch.dtype | None:
    amp = cfg.SOLVER.AMP
    if amp.PRECISION not in PRECISIONS:
        raise ValueError(
            f"SOLVER.AMP.PRECISION is {amp.PRECISION!r}; use one of {list(PRECISIONS)}"
        )
    if not amp.ENABLED:
        return None
    if amp.PRECISION == "fp16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        logger.warning("SOLVER.AMP.PRECISION fp16 needs CUDA: training in full precision")
        return None
    return PRECISIONS[amp.PRECISION]


class MultiPassTrainer(SimpleTrainer):
    """Detectron2's simple and AMP trainers in one, with a gradient that is the mean of passes.

    Each loss is normalised within its pass, by counts of all processes: with two passes the
    gradient is the mean of two batches' gradients, not that of one batch of twice the size, whose
    positives would all weigh the same.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        num_passes: int = 1,
        precision: torch.dtype | None = None,
        skips_non_finite: bool = False,
    ) -> None:
        """
        Args:
            model: gives a dict of losses.
            data_loader: endless; a step takes ``num_passes`` batches of it.
            precision: of autocast; None: full precision. The gradients of float16 are scaled.
            skips_non_finite: leave a step out, and count it, where a loss or the gradient is no
                finite number; else stop.
        """
        super().__init__(model, data_loader, optimizer)
        self.num_passes = num_passes
        self.precision = precision
        self.skips_non_finite = skips_non_finite
        self.num_skipped = 0
        self._num_skipped_in_a_row = 0
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=precision == torch.float16
        )

    def run_step(self) -> None:
        """
        Raises:
            FloatingPointError: a loss or the gradient is not finite, in any process; raised in all
                of them. Names the images. The weights are still those of the step before.
        """
        start = time.perf_counter()
        # All of them at first: the next step continues behind them whatever happens in this one.
        batches = [next(self._data_loader_iter) for _ in range(self.num_passes)]
        data_time = time.perf_counter() - start
        try:
            losses = self._backward(batches)
            self._write_metrics(losses, data_time)
            self._update(batches)
        except FloatingPointError as error:
            if not self.skips_non_finite:
                raise
            self._skip(error)
        else:
            self._num_skipped_in_a_row = 0
        if self.skips_non_finite:
            get_event_storage().put_scalar(
                "num_skipped_steps", self.num_skipped, smoothing_hint=False
            )

    def _backward(self, batches: Sequence[list[dict[str, Any]]]) -> dict[str, Tensor]:
        """Collect the mean gradient of the passes, and return the mean of each loss."""
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self._exchange(now=number == len(batches)):
                with torch.autocast(
                    self._device_type, dtype=self.precision, enabled=self.precision is not None
                ):
                    losses = self.model(batch)
                check_finite(losses, batch)
                shares = {name: loss / len(batches) for name, loss in losses.items()}
                total = torch.stack(list(shares.values())).sum()
                self.grad_scaler.scale(total).backward()
            for name, share in shares.items():
                means[name] = means.get(name, 0) + share.detach()
        return means

    def _exchange(self, *, now: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once in a step, in its last pass."""
        if now or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _update(self, batches: Sequence[list[dict[str, Any]]]) -> None:
        if self.grad_scaler.is_enabled():
            # Detectron2's name.
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        try:
            self.grad_scaler.step(self.optimizer)
        # The gradient is the same in all processes.
        except FloatingPointError as error:
            images = ", ".join(comm.all_gather(_names(batches)))
            raise FloatingPointError(f"{error} for {images}") from error
        finally:
            self.grad_scaler.update()

    def _skip(self, error: FloatingPointError) -> None:
        self.num_skipped += 1
        self._num_skipped_in_a_row += 1
        if self._num_skipped_in_a_row > MAX_SKIPS_IN_A_ROW:
            raise FloatingPointError(
                f"{self._num_skipped_in_a_row} steps in a row could not be done; the last: {error}"
            ) from error
        logger.warning(
            "skipped the step of iteration %d, no. %d of this training: %s",
            self.iter,
            self.num_skipped,
            error,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Empty after another precision; Detectron2's own trainers write neither.
        if scaler := state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(scaler)
        self.num_skipped = state_dict.get("num_skipped", 0)


def check_finite(losses: Mapping[str, Tensor], batch: Sequence[dict[str, Any]]) -> None:
    """Raise in every process where a loss of one of them is no finite number.

    A process that stopped alone would leave the others waiting for its gradients.

    Args:
        losses: scalars.
        batch: the input dicts that they come from.

    Raises:
        FloatingPointError: names the losses and the images.
    """
    is_finite = torch.stack([loss.detach().isfinite() for loss in losses.values()])
    if mean_over_gpus((~is_finite).any().float()).item() == 0:
        return
    values = {name: loss.item() for name, loss in losses.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    found = comm.all_gather(f"{', '.join(bad)} for {_names([batch])}" if bad else "")
    raise FloatingPointError("; ".join(text for text in found if text))


def _names(batches: Iterable[Sequence[dict[str, Any]]]) -> str:
    """The files of the images of some batches."""
    files = [x.get(fields.FILE_NAME, "an image without a file") for batch in batches for x in batch]
    return ", ".join(map(str, files))
