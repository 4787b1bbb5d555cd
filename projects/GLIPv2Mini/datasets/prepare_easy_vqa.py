#!/usr/bin/env python
"""Convert easy-VQA (drawn shapes with questions) from its Python package to VQAv2's format.

    pip install --only-binary=:all: easy-vqa
    python projects/GLIPv2Mini/datasets/prepare_easy_vqa.py

Each question has one answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glipv2_d2.file_writing import atomic_open, dump_json
from glipv2_d2.images import open_image

SHAPES = {"circle", "rectangle", "triangle"}
VERSION = "1.0"
# Of the questions, answers and images of each split.
SHA256 = {
    "train": "cc9e765a3f4faa73b40b3207e2b68bcb39dcf879a8340c078d2e4ba3ed86b3e5",
    "test": "cba169dd2c2ca3c222d6701626775a09d965934654ee0235701cf8215f6ad7bc",
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        import easy_vqa
    except ImportError:
        sys.exit("the package easy-vqa is not installed: pip install easy-vqa")
    for split, expected in SHA256.items():
        texts, answers, image_ids = getattr(easy_vqa, f"get_{split}_questions")()
        paths = getattr(easy_vqa, f"get_{split}_image_paths")()
        if sha256_of((texts, answers, image_ids), paths) != expected:
            sys.exit(
                f"error: the {split} split of the installed easy-vqa is not that of version "
                f"{VERSION}: pip install --force-reinstall --only-binary=:all: easy-vqa=={VERSION}"
            )
        write_images(args.output, split, paths)
        write_json(args.output / f"{split}_questions.json", questions_file(texts, image_ids))
        write_json(args.output / f"{split}_answers.json", answers_file(answers, image_ids))
        print(
            f"{split}: {len(paths)} images in {args.output / split}, {len(texts)} questions in "
            f"{args.output / split}_questions.json, answers in {split}_answers.json"
        )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=root / "easy_vqa", help="default: %(default)s"
    )
    return parser.parse_args(argv)


def sha256_of(contents: Sequence[Sequence[Any]], paths: dict[int, str]) -> str:
    digest = hashlib.sha256(json.dumps(contents).encode())
    for _, path in sorted(paths.items()):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def write_images(root: Path, split: str, paths: dict[int, str]) -> None:
    """Copy the images, with their folder renamed when complete, and list them in COCO's form."""
    partial = root / f"{split}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    images = []
    for image_id, path in tqdm(sorted(paths.items()), desc=f"{split}, images"):
        file_name = f"{image_id:04d}.png"
        shutil.copyfile(path, partial / file_name)
        with open_image(path) as image:
            size = {"width": image.width, "height": image.height}
        images.append({"id": image_id, "file_name": file_name, **size})
    shutil.rmtree(root / split, ignore_errors=True)
    partial.rename(root / split)
    write_json(root / f"{split}.json", {"images": images})


def questions_file(texts: Sequence[str], image_ids: Sequence[int]) -> dict[str, Any]:
    """VQAv2's file of questions, numbered from 1."""
    return {
        "questions": [
            {"question_id": number, "image_id": image_id, "question": text}
            for number, (text, image_id) in enumerate(zip(texts, image_ids, strict=True), start=1)
        ]
    }


def answers_file(answers: Sequence[str], image_ids: Sequence[int]) -> dict[str, Any]:
    return {
        "annotations": [
            {
                "question_id": number,
                "image_id": image_id,
                "question_type": question_type(answer),
                "answer_type": "yes/no" if answer in ("yes", "no") else "other",
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
            }
            for number, (answer, image_id) in enumerate(
                zip(answers, image_ids, strict=True), start=1
            )
        ]
    }


def question_type(answer: str) -> str:
    """The type of a question, from its answer; the remaining answers are eight colours."""
    if answer in ("yes", "no"):
        return "presence"
    return "shape" if answer in SHAPES else "color"


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_open(path) as file:
        file.write(dump_json(content).encode())


if __name__ == "__main__":
    main()
