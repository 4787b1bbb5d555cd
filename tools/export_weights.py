#!/usr/bin/env python
"""Export the weights of a training checkpoint in half precision, for sharing.

python tools/export_weights.py output/mini/model_final.pth glipv2_mini.pth --ema
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from glipv2_d2.checkpoint import read_checkpoint, save_state
from glipv2_d2.modeling.meta_arch import GLIPv2

AVERAGE = "model_ema"


def select_weights(checkpoint: dict[str, Any], *, use_ema: bool) -> dict[str, torch.Tensor]:
    """The weights that inference needs.

    Args:
        use_ema: return the averaged weights.

    Raises:
        ValueError: the checkpoint has no averaged weights.
    """
    weights = dict(checkpoint["model"])
    if use_ema:
        if not checkpoint.get(AVERAGE):
            raise ValueError(f"the checkpoint has no {AVERAGE}: it was trained with EMA_DECAY 0")
        # The average may include parts that checkpoints exclude.
        weights.update({k: v for k, v in checkpoint[AVERAGE].items() if k in weights})
    loss_prefixes = GLIPv2.checkpoint_loss_only
    return {name: tensor for name, tensor in weights.items() if not name.startswith(loss_prefixes)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of tools/train_net.py")
    parser.add_argument("output", type=Path, help="output file")
    parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    args = parser.parse_args()
    weights = select_weights(read_checkpoint(args.checkpoint), use_ema=args.ema)
    save_state(weights, args.output, torch.float16)
    print(
        f"wrote {args.output}: {len(weights)} tensors in half precision, "
        f"{args.output.stat().st_size / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
