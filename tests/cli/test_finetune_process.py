"""``glipv2 finetune`` as a process that is terminated."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.models import tiny_cfg, tiny_model
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2 import Predictor
from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.finetune.tuning import read_delta

SMALL = (
    *("INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.MAX_SIZE_TRAIN", 64),
    *("DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0),
)


def test_a_process_that_gets_sigterm_leaves_a_model_and_exits_with_143(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        annotations, images = write_coco(tmp_path / "pets" / split, num_images=4)
        for image in images.iterdir():
            shutil.move(image, annotations.parent)
        annotations.rename(annotations.parent / "_annotations.coco.json")
    (tmp_path / "base.yaml").write_text(tiny_cfg(*SMALL).dump())
    save_weights(tiny_model(*SMALL), tmp_path / "base.pth")
    output = tmp_path / "output"
    arguments = [
        "--data",
        tmp_path / "pets",
        "--output",
        output,
        "--epochs",
        "100000",
        "--batch",
        "1",
    ]
    arguments += ["--config", tmp_path / "base.yaml", "--weights", tmp_path / "base.pth"]
    process = subprocess.Popen(
        [sys.executable, "-m", "glipv2_cli", "finetune", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # Lines of metrics are written by the training itself.
        metrics = output / "metrics.json"
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, printed
    assert f"ended; what was trained is in {output}, and --resume continues" in printed
    assert read_delta(output / "delta.pth").tensors
    predictor = Predictor(output, device="cpu")
    assert predictor.class_names == list(NAMES)
    assert predictor.predict(tmp_path / "pets" / "valid" / "0.png").names == list(NAMES)
