"""Export the shipped model and GLIP-T, and compare the graphs with the models.

    python tests/product/export_check.py

ONNX graphs of glipv2-mini on photos, also in a process without torch, and of GLIP-T with random
weights on one of 480 x 640; with words that the export did not see. TorchScript and torch.export of
glipv2-mini. Prints the largest differences, and the times of model and graph, in turns and with one
thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image
from skimage import data

from glipv2_d2 import Predictor
from glipv2_d2.export.graphs import FixedNamesDetector, outputs_of
from glipv2_d2.export.runtime import Detector
from glipv2_mini.text import phrases

MAX_LOGIT_DIFFERENCE, MAX_SCORE_DIFFERENCE, MAX_BOX_DIFFERENCE = 1e-3, 1e-3, 0.5
MINI_SIZE = (288, 416)
# Graphs are in float32.
OPTS = ["MODEL.MASK_ON", False, "MODEL.EVIDENCE.INT8_CLASSIFIER", False]
PHOTOS = {
    "coffee": (data.coffee, ["coffee cup", "spoon", "the red cup on the left", "saucer"]),
    "chelsea": (data.chelsea, ["cat", "a small gray animal", "dog"]),
    "rocket": (data.rocket, ["rocket", "tower", "man in a white shirt", "lightning rod", "tree"]),
}
WITHOUT_TORCH = """
import os, runpy, sys
for name in ("torch", "torchvision", "transformers", "detectron2", "glipv2_d2", "glipv2_mini"):
    sys.modules[name] = None
path = sys.argv.pop(1)
sys.path.insert(0, os.path.dirname(path))
runpy.run_path(path, run_name="__main__")
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="of the times; default: %(default)s")
    parser.add_argument("--only", choices=("mini", "graphs", "glip"), help="one part")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        mini = Predictor("glipv2-mini", device="cpu", opts=OPTS)
        if args.only in (None, "mini"):
            check_mini(mini, Path(folder), args.turns)
        if args.only in (None, "graphs"):
            check_fixed_names(mini)
        del mini
        if args.only in (None, "glip"):
            check_glip(Path(folder), args.turns)
    return 0


def check_mini(predictor: Predictor, folder: Path, turns: int) -> None:
    output = folder / "mini"
    export(output, "--size", "x".join(map(str, MINI_SIZE)))
    detector = Detector(output, phrase_parser=phrases, num_threads=1)
    for name, (photo, names) in PHOTOS.items():
        image = photo()
        expected = predictor.predict(
            Image.fromarray(image), classes=names, threshold=None
        ).instances
        found = detector.detect(Image.fromarray(image), names, threshold=0.0)
        assert found.classes.tolist() == expected.pred_classes.tolist(), name
        score = float(np.abs(found.scores - expected.scores.numpy()).max())
        box = float(np.abs(found.boxes - expected.pred_boxes.tensor.numpy()).max())
        print(
            f"glipv2-mini, {name}: {len(found.scores)} boxes, largest differences of scores "
            f"{score:.1e}, of boxes {box:.1e} pixels"
        )
        assert score <= MAX_SCORE_DIFFERENCE and box <= MAX_BOX_DIFFERENCE
    compare_times(
        "glipv2-mini",
        lambda: predictor.predict(Image.fromarray(image), classes=names),
        lambda: detector.detect(Image.fromarray(image), names),
        turns,
    )
    Image.fromarray(data.coffee()).save(folder / "coffee.png")
    run_without_torch(output, folder / "coffee.png", "coffee cup, the red cup on the left")


def run_without_torch(output: Path, photo: Path, names: str) -> None:
    arguments = [str(output / "detect.py"), str(photo), names, "--threads", "1"]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=photo.parent,
    )
    assert run.returncode == 0, run.stderr
    print(f"  without torch: {run.stdout.splitlines()[0]} ... {run.stderr.strip()}")


def check_fixed_names(predictor: Predictor) -> None:
    names = ["coffee cup", "spoon", "the cup on the left"]
    graph = FixedNamesDetector(predictor.model, names).eval()
    first, second = (network_input(predictor, photo()) for photo in (data.chelsea, data.coffee))
    first = first[:, : second.shape[1], : second.shape[2]]
    for kind, record in (
        ("torch.jit.trace", lambda: torch.jit.trace(graph, first, check_trace=False)),
        ("torch.export", lambda: torch.export.export(graph, (first,), strict=False).module()),
    ):
        start = time.perf_counter()
        recorded = record()
        seconds = time.perf_counter() - start
        found, expected = recorded(second), graph(second)
        assert torch.equal(found[2], expected[2]), kind
        box, score = (
            float((a - b).abs().max()) for a, b in zip(found[:2], expected[:2], strict=True)
        )
        print(
            f"{kind} of glipv2-mini in {seconds:.0f} s, another photo: {len(found[1])} boxes, "
            f"largest differences of scores {score:.1e}, of boxes {box:.1e} pixels"
        )
        assert score <= MAX_SCORE_DIFFERENCE and box <= MAX_BOX_DIFFERENCE


def network_input(predictor: Predictor, image: np.ndarray) -> torch.Tensor:
    tensor: torch.Tensor = predictor._make_input(image, {})["image"]
    return tensor


def check_glip(folder: Path, turns: int) -> None:
    """GLIP-T with random weights from a file, which export and comparison load."""
    weights = folder / "glip_t.pth"
    torch.manual_seed(0)
    opts = ("INPUT.MIN_SIZE_TEST", 480, "INPUT.MAX_SIZE_TEST", 640)
    predictor = Predictor("glip-t", device="cpu", opts=["MODEL.WEIGHTS", "", *opts])
    torch.save({"model": predictor.model.state_dict()}, weights)
    output = folder / "glip-t"
    settings = ["--model", "glip-t", "--weights", str(weights), "--size", "480x640"]
    export(output, *settings, "--opts", *map(str, opts))
    detector = Detector(output, num_threads=1)
    names = ["coffee cup", "wooden table", "silver spoon"]
    image = np.asarray(Image.fromarray(data.coffee()).resize((640, 480)))
    pixels, _ = detector.network_input(Image.fromarray(image))
    model, (prompt,) = predictor.model, detector.prompts(tuple(names))
    x = predictor._make_input(image, {"classes": names})

    def run_model() -> tuple[np.ndarray, np.ndarray]:
        queries = model.query_builder.localized_queries([x], [{}])
        fused = model.fuse_queries(model.encode_images([x]), queries)
        head = model.proposal_generator
        boxes, logits, _ = outputs_of(head, head.predict(fused))
        return boxes.numpy(), logits.numpy()

    boxes, logits = run_model()
    found_boxes, found_logits, _ = detector.run(pixels, prompt)
    box, logit = np.abs(boxes - found_boxes).max(), np.abs(logits - found_logits).max()
    print(
        f"glip-t at 480 x 640, random weights: {logits.shape[0]} x {logits.shape[1]} logits, "
        f"largest differences of logits {logit:.1e}, of boxes {box:.1e} pixels"
    )
    assert logit <= MAX_LOGIT_DIFFERENCE and box <= MAX_BOX_DIFFERENCE
    compare_times("glip-t", run_model, lambda: detector.run(pixels, prompt), turns)


def export(output: Path, *arguments: str) -> None:
    start = time.perf_counter()
    logs = ["--log", str(output.parent / "logs")]
    command = [sys.executable, "-m", "glipv2_cli", "export", "--output", str(output), *logs]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.replace(str(output.parent), "").splitlines()
    print(f"exported in {time.perf_counter() - start:.0f} s: {'; '.join(lines)}")


def compare_times(
    name: str, model: Callable[[], object], graph: Callable[[], object], turns: int
) -> None:
    """Print the medians of both, in turns after a first call of each."""
    seconds: dict[str, list[float]] = {"model": [], "graph": []}
    for turn in range(turns + 1):
        for kind, function in (("model", model), ("graph", graph)):
            start = time.perf_counter()
            function()
            if turn > 0:
                seconds[kind].append(time.perf_counter() - start)
    medians = {kind: float(np.median(values)) for kind, values in seconds.items()}
    print(
        f"  {name}, one thread, median of {turns}: model {medians['model']:.2f} s, "
        f"onnxruntime {medians['graph']:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
