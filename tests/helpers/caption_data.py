"""Image-caption pairs of noise images, and a part-of-speech tagger without spaCy."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from helpers.tiny_coco import write_coco

from glipv2_d2.engine.pseudo_label import pseudo_labeler
from glipv2_d2.text import noun_phrases
from glipv2_d2.text.noun_phrases import TaggedWord

TAGS = {"a": "DT", "on": "IN", "runs": "VBZ"}


def use_plain_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace spaCy's tagger by one that splits at spaces and tags words outside TAGS as nouns."""

    def tag(caption: str) -> list[TaggedWord]:
        return [
            TaggedWord(word.span(), TAGS.get(word.group(), "NN"))
            for word in re.finditer(r"\S+", caption)
        ]

    for module in (noun_phrases, pseudo_labeler):
        monkeypatch.setattr(module, "load_tagger", lambda: tag)


def write_images(folder: Path, num_images: int) -> Path:
    """Write ``0.png``, ``1.png`` ..., 48 pixels high and 48, 49 ... pixels wide."""
    return write_coco(folder, num_images=num_images)[1]


def write_lines(path: Path, pairs: Sequence[tuple[str, str]]) -> str:
    lines = [json.dumps({"image": image, "caption": caption}) for image, caption in pairs]
    path.write_text("\n".join(lines))
    return str(path)


def write_tar(path: Path, members: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)
