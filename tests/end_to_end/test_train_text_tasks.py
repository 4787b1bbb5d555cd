"""train_net.py on a mixture of detection, grounded questions, questions and captions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from helpers.models import tiny_cfg
from helpers.text_tasks import CAPTIONING

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.composed_dataset import vqa_files
from glipv2_d2.data.drawn import write_drawn
from glipv2_d2.data.registration import register
from glipv2_d2.engine.finetune.tuning import load_model
from glipv2_d2.engine.parameter_prefixes import TEXT_HEADS
from glipv2_d2.engine.setup import load_config
from glipv2_d2.structures import QueryKind

DATASETS = ("boxes", "vqa", "captions", "grounded")


def grounded_questions(json_file: Path, image_root: Path) -> list[dict]:
    """One question per image about its first object, with the box of the answer."""
    content = json.loads(json_file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    first = {a["image_id"]: a for a in reversed(content["annotations"])}
    question, records = "what is there?", []
    for image in content["images"]:
        if image["id"] not in first:
            continue
        answer = names[first[image["id"]]["category_id"]]
        start, end = len(question) + 1, len(question) + 1 + len(answer)
        box = {"bbox": first[image["id"]]["bbox"], "bbox_mode": 1, "category_id": 0}
        record = {key: image[key] for key in ("height", "width")}
        record |= {"file_name": str(image_root / image["file_name"]), "image_id": image["id"]}
        record |= {"question": question, "question_id": image["id"], "answers": {answer: 1.0}}
        record |= {"caption": f"{question} {answer}", "phrases": [[[start, end]]]}
        records.append({**record, "annotations": [box]})
    return records


def write_questions(json_file: Path) -> dict[str, str]:
    """Questions about the number of objects of each image, in VQAv2's two files."""
    content = json.loads(json_file.read_text())
    counts = Counter(annotation["image_id"] for annotation in content["annotations"])
    pairs = {i: [("how many shapes are there?", str(n))] for i, n in counts.items()}
    paths = {}
    for ending, file in vqa_files(pairs).items():
        path = json_file.with_name(f"{json_file.stem}{ending}.json")
        path.write_text(json.dumps(file))
        paths[ending.removeprefix("_")] = str(path)
    return paths


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("text_tasks")
    json_file = write_drawn(root, split="train", num_images=6, size=64, seed=0)
    files = {"json": str(json_file), "images": str(root / "train")}
    question_files = write_questions(json_file)
    register(
        "text_tasks_grounded",
        lambda: grounded_questions(json_file, root / "train"),
        source_files=(str(json_file),),
    )
    answers = json.loads(Path(question_files["answers"]).read_text())["annotations"]
    vocabulary = sorted({entry["multiple_choice_answer"] for entry in answers})
    cfg = tiny_cfg(
        *("DATASETS.TRAIN", tuple(f"text_tasks_{name}" for name in DATASETS)),
        *("DATASETS.TEST", ("text_tasks_vqa",), "OUTPUT_DIR", str(root / "output")),
        *("INPUT.MIN_SIZE_TRAIN", (48,), "INPUT.MIN_SIZE_TEST", 48, "SEED", 1),
        *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 4),
        *("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", ()),
        *("SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0),
        *("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", vocabulary, *CAPTIONING),
    )
    cfg.DATASETS.CUSTOM = [
        {"name": "text_tasks_boxes", **files},
        {"name": "text_tasks_vqa", "format": "vqa", **files, **question_files},
        {"name": "text_tasks_captions", "format": "captioning", **files},
    ]
    path = root / "tiny.yaml"
    path.write_text(cfg.dump())
    yield path
    for name in DATASETS:
        DatasetCatalog.remove(f"text_tasks_{name}")
        MetadataCatalog.remove(f"text_tasks_{name}")


@pytest.fixture(scope="module")
def output(config_file: Path) -> Path:
    """The output folder of a training with a final evaluation."""
    train_net.main(default_argument_parser().parse_args(["--config-file", str(config_file)]))
    return config_file.parent / "output"


def test_the_parameters_of_the_text_heads_are_trained(output: Path) -> None:
    first, last = (
        torch.load(output / file, weights_only=True)["model"]
        for file in ("model_0000000.pth", "model_final.pth")
    )
    names = [name for name in last if name.startswith(TEXT_HEADS)]
    assert len(names) == 8 + 5
    # A constant added to all logits does not change the softmax over words.
    unchanged = [name for name in names if torch.equal(first[name], last[name])]
    assert all(name.endswith("answer.attention.bias") for name in unchanged)


def test_evaluation_computes_the_accuracy_and_writes_results(
    config_file: Path, output: Path
) -> None:
    results = json.loads((output / "results.json").read_text())
    assert 0 <= results["text_tasks_vqa"]["vqa"]["accuracy"] <= 100
    questions = json.loads((config_file.parent / "train_questions.json").read_text())["questions"]
    written = output / "inference" / "text_tasks_vqa" / "vqa_results.json"
    ids = {row["question_id"] for row in json.loads(written.read_text())}
    assert ids == {question["question_id"] for question in questions}


def test_grounded_questions_have_a_box_for_the_masked_answer(config_file: Path) -> None:
    cfg = load_config(config_file, ["DATASETS.TRAIN", "('text_tasks_grounded',)"])
    batch = next(iter(build_train_loader(cfg)))
    queries = load_model(cfg).query_builder.for_training(batch)
    assert len(queries) == len(batch) == 4
    assert all(query.kind is QueryKind.ANSWER for query in queries)
    assert {tuple(query.prompt.phrases) for query in queries} == {("[MASK]",)}
    assert all(len(query.gt_instances) == 1 for query in queries)


def test_captions_are_generated_for_a_captioning_dataset(config_file: Path, output: Path) -> None:
    cfg = load_config(config_file, ["MODEL.WEIGHTS", str(output / "model_final.pth")])
    batch = next(iter(build_test_loader(cfg, "text_tasks_captions")))
    with torch.no_grad():
        outputs = load_model(cfg).eval()(batch)
    assert [x.keys() for x in outputs] == [{"caption"}] * len(batch)
    assert all(x["caption"].strip() for x in outputs)
