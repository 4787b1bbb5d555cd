"""One optimizer step: gradient accumulation, mixed precision and non-finite losses.

A *micro-batch* is one batch of the data loader, for one forward and backward pass.
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

from glipv2_d2.engine.precision import PRECISIONS
from glipv2_d2.modeling.losses.distributed import mean_over_gpus
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

# SOLVER.NON_FINITE -> whether steps with a non-finite loss or gradient are skipped.
SKIP_NON_FINITE = {"stop": False, "skip": True}
# After more skipped steps in a row the model has diverged (our choice).
MAX_SKIPS_IN_A_ROW = 20


def images_per_micro_batch(cfg: CfgNode) -> int:
    """Images of one micro-batch over all processes: ``IMS_PER_BATCH / ACCUMULATION_STEPS``.

    Raises:
        ValueError: the images of a step cannot be divided evenly.
    """
    images, micro_batches = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    processes = comm.get_world_size()
    if micro_batches < 1 or images < 1 or images % (micro_batches * processes) != 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}, SOLVER.ACCUMULATION_STEPS {micro_batches}, with "
            f"{processes} process(es): IMS_PER_BATCH must be a positive multiple of "
            f"{max(1, micro_batches) * processes}, and ACCUMULATION_STEPS at least 1"
        )
    return images // micro_batches


def micro_batch_config(cfg: CfgNode) -> CfgNode:
    """The config of a data loader that yields micro-batches: with their ``IMS_PER_BATCH``.

    Raises:
        ValueError: see :func:`images_per_micro_batch`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = images_per_micro_batch(cfg)
    cfg.freeze()
    return cfg


def build_accumulating_trainer(
    cfg: CfgNode,
    model: nn.Module,
    data_loader: Iterable[list[dict[str, Any]]],
    optimizer: torch.optim.Optimizer,
) -> AccumulatingTrainer:
    """Build the trainer of ``SOLVER.ACCUMULATION_STEPS``, ``AMP`` and ``NON_FINITE``.

    Args:
        data_loader: yields micro-batches, see :func:`images_per_micro_batch`.

    Raises:
        ValueError: a key has an unknown value.
    """
    if cfg.SOLVER.NON_FINITE not in SKIP_NON_FINITE:
        raise ValueError(
            f"SOLVER.NON_FINITE is {cfg.SOLVER.NON_FINITE!r}; use one of {list(SKIP_NON_FINITE)}"
        )
    return AccumulatingTrainer(
        model=model,
        data_loader=data_loader,
        optimizer=optimizer,
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        precision=_precision(cfg),
        skip_non_finite=SKIP_NON_FINITE[cfg.SOLVER.NON_FINITE],
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


class AccumulatingTrainer(SimpleTrainer):
    """Detectron2's SimpleTrainer and AMPTrainer in one, with gradient accumulation.

    The gradient of a step is the mean over its micro-batches. Each loss is normalised within its
    micro-batch, by counts over all processes: two micro-batches do not give the gradient of one
    batch of twice the size, in which every positive location has the same weight.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        accumulation_steps: int = 1,
        precision: torch.dtype | None = None,
        skip_non_finite: bool = False,
    ) -> None:
        """
        Args:
            model: returns a dict of scalar losses.
            data_loader: endless; a step takes ``accumulation_steps`` micro-batches from it.
            accumulation_steps: micro-batches of one optimizer step.
            precision: dtype of autocast; None: full precision. Gradients are scaled with float16.
            skip_non_finite: skip and count a step whose loss or gradient is not finite, instead of
                raising an error.
        """
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.precision = precision
        self.skip_non_finite = skip_non_finite
        self.num_skipped = 0
        self._num_skipped_in_a_row = 0
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=precision == torch.float16
        )

    def run_step(self) -> None:
        """Accumulate gradients, write metrics and update the weights.

        Raises:
            FloatingPointError: a loss or the gradient of any process is not finite; raised in all
                processes. The message names the images. The weights are not updated.
        """
        start = time.perf_counter()
        # All of them first: a skipped step uses up its micro-batches as well.
        batches = [next(self._data_loader_iter) for _ in range(self.accumulation_steps)]
        data_time = time.perf_counter() - start
        try:
            losses = self._backward(batches)
            self._write_metrics(losses, data_time)
            self._update(batches)
        except FloatingPointError as error:
            if not self.skip_non_finite:
                raise
            self._skip(error)
        else:
            self._num_skipped_in_a_row = 0
        if self.skip_non_finite:
            get_event_storage().put_scalar(
                "num_skipped_steps", self.num_skipped, smoothing_hint=False
            )

    def _backward(self, batches: Sequence[list[dict[str, Any]]]) -> dict[str, Tensor]:
        """Accumulate the mean gradient of the micro-batches; return the mean of each loss."""
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self._gradient_sync(enabled=number == len(batches)):
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

    def _gradient_sync(self, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once per step, in its last micro-batch."""
        if enabled or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _update(self, batches: Sequence[list[dict[str, Any]]]) -> None:
        if self.grad_scaler.is_enabled():
            # The name that Detectron2's AMPTrainer uses.
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        try:
            self.grad_scaler.step(self.optimizer)
        # The gradient is the same in all processes.
        except FloatingPointError as error:
            images = ", ".join(comm.all_gather(_file_names(batches)))
            raise FloatingPointError(f"{error} for {images}") from error
        finally:
            self.grad_scaler.update()

    def _skip(self, error: FloatingPointError) -> None:
        self.num_skipped += 1
        self._num_skipped_in_a_row += 1
        if self._num_skipped_in_a_row > MAX_SKIPS_IN_A_ROW:
            raise FloatingPointError(
                f"{self._num_skipped_in_a_row} steps in a row were skipped; the last: {error}"
            ) from error
        logger.warning(
            "skipped the step of iteration %d (%d skipped so far): %s",
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
        # Empty after training in another precision; absent from Detectron2's own checkpoints.
        if scaler := state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(scaler)
        self.num_skipped = state_dict.get("num_skipped", 0)


def check_finite(losses: Mapping[str, Tensor], batch: Sequence[dict[str, Any]]) -> None:
    """Raise an error in every process when a loss of any process is not finite.

    A process that stopped alone would leave the others waiting for its gradients.

    Args:
        losses: scalars.
        batch: the input dicts from which the losses were computed.

    Raises:
        FloatingPointError: names the losses and the images.
    """
    is_finite = torch.stack([loss.detach().isfinite() for loss in losses.values()])
    if mean_over_gpus((~is_finite).any().float()).item() == 0:
        return
    values = {name: loss.item() for name, loss in losses.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    found = comm.all_gather(f"{', '.join(bad)} for {_file_names([batch])}" if bad else "")
    raise FloatingPointError("; ".join(text for text in found if text))


def _file_names(batches: Iterable[Sequence[dict[str, Any]]]) -> str:
    files = [x.get(fields.FILE_NAME, "an image without a file") for batch in batches for x in batch]
    return ", ".join(map(str, files))
