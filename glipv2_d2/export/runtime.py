"""Detect objects of any class names with a model of ``glipv2 export --format onnx``, without torch.

    python detect.py photo.jpg "cat, coffee cup"

This file stands alone, and an exported folder has it as detect.py. It needs numpy, onnxruntime,
Pillow and tokenizers. In a script, with the folder in ``sys.path``:

    from detect import Detector

    detector = Detector("exported")
    boxes, scores, classes = detector.detect("photo.jpg", ["cat", "coffee cup"])

T: tokens of a prompt. L: class names of a prompt. D: width of the text features. A: locations.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import logging
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

VERSION = 2
# Of the sides: a longer photo is a strip.
STRIP_RATIO = 10
# Of export.json.
KEYS = {
    "image": "height width channels mean std resize min_size max_size",
    "text": "unit embeds_core_phrases num_descriptions phrase_parser separator max_tokens "
    "max_classes special_ids all_special_ids unk_id",
    "detection": "levels score_thresh pre_nms_topk nms_thresh detections_per_prompt "
    "detections_per_image aggregation display_score_thresh",
}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes: (K, 4) XYXY in pixels of the image.
        scores: (K,) 0..1.
        classes: (K,) indices of the class names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Prompt(NamedTuple):
    """The class names that share a prompt, as inputs of the detector.

    Attributes:
        text: (1, T, D) features.
        descriptions: (1, T, K).
        positive_map: (L, T) bool, the tokens that spell each name.
        classes: the index of each name.
    """

    text: np.ndarray
    descriptions: np.ndarray
    positive_map: np.ndarray
    classes: np.ndarray


class Detector:
    """An exported model."""

    def __init__(
        self,
        folder: str | Path,
        *,
        phrase_parser: ModuleType | None = None,
        num_threads: int = 0,
    ) -> None:
        """
        Args:
            folder: what ``glipv2 export --format onnx`` wrote.
            phrase_parser: the module of the folder's phrase_parser.py, of models that need it;
                default: it is imported by its name.
            num_threads: of onnxruntime; 0: all cores.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or of another version.
        """
        folder = Path(folder)
        self.settings = _read_settings(folder / "export.json")
        self.parser = phrase_parser
        if self.settings["text"]["phrase_parser"] and phrase_parser is None:
            self.parser = importlib.import_module("phrase_parser")
        self.tokenizer = _read_tokenizer(folder / "tokenizer.json")
        self.encoder = _session(folder / "text.onnx", num_threads)
        self.detector = _session(folder / "detector.onnx", num_threads)
        self.prompts = functools.lru_cache(maxsize=16)(self._prompts)

    def detect(
        self,
        image: str | Path | Image.Image,
        names: Sequence[str],
        threshold: float | None = None,
    ) -> Detections:
        """Detect class names in an image.

        Args:
            image: a file, or an image of Pillow; turned by its EXIF data.
            names: class names; long lists are split into prompts.
            threshold: minimum score; default: the model's.

        Raises:
            FileNotFoundError, ValueError: the image or the names are invalid.
        """
        prompts = self.prompts(tuple(_check_names(names)))
        photo = _load(image)
        pixels, (height, width) = self.network_input(photo)
        parts = [self._detect(pixels, prompt, (height, width)) for prompt in prompts]
        boxes, scores, classes = (np.concatenate(x) for x in zip(*parts, strict=True))
        order = np.argsort(-scores, kind="stable")
        limit = self.settings["detection"]["detections_per_image"]
        order = order[: limit if limit >= 0 else None]
        if threshold is None:
            threshold = self.settings["detection"]["display_score_thresh"]
        order = order[scores[order] >= threshold]
        scale = np.array([photo.width / width, photo.height / height] * 2, dtype=np.float32)
        # The last pixel of a box belongs to it.
        boxes = boxes[order] * scale + np.array([0, 0, 1, 1], dtype=np.float32)
        return Detections(boxes, scores[order], classes[order])

    def network_input(self, photo: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """The photo resized as in training, but at most to the size of the graph, and padded.

        Returns:
            (3, H, W) float32, and the height and width that the photo has in it.
        """
        settings = self.settings["image"]
        height, width = _resized(photo.height, photo.width, settings)
        pixels = np.asarray(photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        if settings["channels"] == "BGR":
            pixels = pixels[..., ::-1]
        mean, std = (np.array(settings[key], dtype=np.float32) for key in ("mean", "std"))
        padded = np.zeros((3, settings["height"], settings["width"]), dtype=np.float32)
        padded[:, :height, :width] = ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)
        return padded, (height, width)

    def run(self, pixels: np.ndarray, prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The graph's outputs: (A, 4) boxes, (A, T) and (A,) logits of words and of centerness.

        Raises:
            ValueError: ``pixels`` has not the size of the graph.
        """
        settings = self.settings["image"]
        expected = (3, settings["height"], settings["width"])
        if pixels.shape != expected:
            raise ValueError(
                f"the image has the shape {pixels.shape}, but this model was exported for "
                f"{expected}: use network_input(), or export it for that size (glipv2 export "
                "--size)"
            )
        inputs = {"image": pixels, "text": prompt.text}
        if self.settings["text"]["num_descriptions"]:
            inputs["descriptions"] = prompt.descriptions
        return tuple(self.detector.run(["boxes", "logits", "centerness"], inputs))

    def _detect(self, pixels: np.ndarray, prompt: Prompt, size: tuple[int, int]) -> Detections:
        """Detections of one prompt in pixels of the network input, with inclusive corners."""
        settings = self.settings["detection"]
        boxes, logits, centerness = self.run(pixels, prompt)
        scores = _label_scores(_sigmoid(logits), prompt.positive_map, settings["aggregation"])
        ranked = np.where(
            scores > settings["score_thresh"], scores * _sigmoid(centerness)[:, None], -1
        )
        rows, labels = _best_per_level(ranked, settings["levels"], settings["pre_nms_topk"])
        scores = np.sqrt(ranked[rows, labels])
        last = np.array([size[1] - 1, size[0] - 1] * 2, dtype=np.float32)
        boxes = np.clip(boxes[rows], 0, last)
        kept = _nms(boxes, scores, labels, settings["nms_thresh"])
        limit = settings["detections_per_prompt"]
        if len(kept) > limit:
            kept = kept[scores[kept] >= scores[kept[limit - 1]]]
        return Detections(boxes[kept], scores[kept], prompt.classes[labels[kept]])

    def _prompts(self, names: tuple[str, ...]) -> list[Prompt]:
        """The prompts of class names, in order; duplicates and unknown words are left out."""
        first_of: dict[str, int] = {}
        for index, name in enumerate(names):
            first_of.setdefault(normalized_name(name), index)
        cleaned = {index: clean_name(names[index]) for index in first_of.values()}
        ids = {index: self._ids(name) for index, name in cleaned.items()}
        known = [index for index in cleaned if self._has_words(ids[index])]
        if unknown := [names[index] for index in cleaned if index not in known]:
            logger.warning("never detected, as the words are unknown: %s", unknown)
        if not known:
            raise ValueError(f"the model knows no word of {list(names)}: use other words")
        chunks = self._chunks(known, {index: len(ids[index]) for index in known}, names)
        return [self._prompt([cleaned[index] for index in chunk], chunk) for chunk in chunks]

    def _chunks(
        self, known: Sequence[int], lengths: dict[int, int], names: Sequence[str]
    ) -> Iterator[list[int]]:
        """Class names grouped into as few prompts as the limits allow."""
        settings = self.settings["text"]
        gap, room = len(self._ids(settings["separator"])), settings["max_tokens"] - 2
        chunk: list[int] = []
        used = 0
        for index in known:
            if lengths[index] > room:
                raise ValueError(
                    f"{names[index]!r} has {lengths[index]} tokens, a prompt has room for {room}"
                )
            is_full = 0 < settings["max_classes"] == len(chunk)
            if chunk and (is_full or used + gap + lengths[index] > room):
                yield chunk
                chunk, used = [], 0
            used += lengths[index] + (gap if chunk else 0)
            chunk.append(index)
        yield chunk

    def _prompt(self, names: Sequence[str], classes: Sequence[int]) -> Prompt:
        settings = self.settings["text"]
        encoding = self.tokenizer.encode(settings["separator"].join(names))
        spans, start = [], 0
        for name in names:
            spans.append((start, start + len(name)))
            start += len(name) + len(settings["separator"])
        positive_map = _positive_map(spans, encoding)
        encode = self._encode_phrases if settings["unit"] == "phrase" else self._encode_prompt
        descriptions = np.zeros(
            (1, len(encoding.ids), settings["num_descriptions"]), dtype=np.float32
        )
        if self.parser is not None and settings["num_descriptions"]:
            rows = np.array([self.parser.describe_phrase(name) for name in names])
            descriptions[0] = positive_map.T.astype(np.float32) @ rows.astype(np.float32)
        text = encode(encoding, positive_map)[None]
        return Prompt(text, descriptions, positive_map, np.array(classes))

    def _encode_prompt(self, encoding: Encoding, _: np.ndarray) -> np.ndarray:
        """(T, D) of a prompt as a whole."""
        return self._hidden([encoding.ids])[0]

    def _encode_phrases(self, encoding: Encoding, positive_map: np.ndarray) -> np.ndarray:
        """(T, D): each token has the embedding of its name; of several, their mean."""
        ids = np.array(encoding.ids)
        phrases = [ids[row].tolist() for row in positive_map]
        embeddings = self._embed(phrases)
        if self.settings["text"]["embeds_core_phrases"] and self.parser is not None:
            decoded = [self.tokenizer.decode(phrase).strip() for phrase in phrases]
            cores = self._embed([self._ids(self.parser.core_phrase(text)) for text in decoded])
            embeddings = _unit_variance(embeddings + cores)
        weights = positive_map.T.astype(np.float32)
        return weights @ embeddings / np.maximum(weights.sum(axis=1, keepdims=True), 1)

    def _embed(self, phrases: Sequence[Sequence[int]]) -> np.ndarray:
        """(L, D): the mean of each phrase's tokens, [CLS] and [SEP] included."""
        first, last = self.settings["text"]["special_ids"]
        rows = [[first, *phrase, last] for phrase in phrases]
        means = [
            hidden[: len(row)].mean(axis=0)
            for hidden, row in zip(self._hidden(rows), rows, strict=True)
        ]
        return _unit_variance(np.stack(means))

    def _hidden(self, ids_per_text: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, T, D) of token ids, padded to the longest."""
        width = max(map(len, ids_per_text))
        ids, mask = np.zeros((2, len(ids_per_text), width), dtype=np.int64)
        for row, own in enumerate(ids_per_text):
            ids[row, : len(own)], mask[row, : len(own)] = own, 1
        (hidden,) = self.encoder.run(["hidden"], {"input_ids": ids, "mask": mask})
        return hidden

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _has_words(self, ids: Sequence[int]) -> bool:
        """Whether not all tokens are special, or unknown or punctuation."""
        special, unknown = self.settings["text"]["all_special_ids"], self.settings["text"]["unk_id"]
        known = [i for i in ids if i not in special]
        if unknown not in ids:
            return len(known) > 0
        tokens = (self.tokenizer.id_to_token(i) or "" for i in known)
        return any(character.isalnum() for token in tokens for character in token)


# Invisible characters outside the categories Cc and Cf. The functions of names are those of
# glipv2_d2.text.names; a test compares them.
_OTHER_INVISIBLE = {
    *"\u034f\u115f\u1160\u180b\u180c\u180d\u180f\u3164\uffa0",
    *map(chr, range(0xFE00, 0xFE10)),
    *map(chr, range(0xE0100, 0xE01F0)),
}


def normalize_unicode(text: str) -> str:
    """The composed form of a string, without invisible characters."""
    visible = "".join(character for character in text if not _is_invisible(character))
    return unicodedata.normalize("NFC", visible)


def _is_invisible(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cf"):
        return not character.isspace()
    return character in _OTHER_INVISIBLE


def clean_name(name: str) -> str:
    """A class name as it is in a prompt: without parentheses and "_"."""
    name = normalize_unicode(name)
    cleaned = _normalize_blanks(re.sub(r"\(.*\)", "", name, flags=re.DOTALL))
    return cleaned if cleaned.strip() else _normalize_blanks(re.sub(r"[()]", " ", name)).strip()


def _normalize_blanks(name: str) -> str:
    return name.replace("_", " ").replace("  ", " ")


def normalized_name(name: str) -> str:
    """The key by which two class names are one."""
    words = normalize_unicode(name).replace("_", " ").split()
    return unicodedata.normalize("NFC", " ".join(words).lower())


def _check_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not names:
        raise ValueError(f"class names are {names!r}: pass a list with at least one name")
    for name in names:
        if not isinstance(name, str) or not clean_name(name).replace(".", "").strip():
            raise ValueError(f"class name {name!r} has no words: remove or rename it")
    return list(names)


def _positive_map(spans: Sequence[tuple[int, int]], encoding: Encoding) -> np.ndarray:
    """(L, T) bool: from the first token of a span's first character to the last of its last."""
    result = np.zeros((len(spans), len(encoding.ids)), dtype=bool)
    for row, (start, end) in zip(result, spans, strict=True):
        tokens = [
            token
            for token, (first, last) in enumerate(encoding.offsets)
            if max(first, start) < min(last, end)
        ]
        if tokens:
            row[tokens[0] : tokens[-1] + 1] = True
    return result


def _label_scores(probs: np.ndarray, positive_map: np.ndarray, aggregation: str) -> np.ndarray:
    """(A, T) token probabilities -> (A, L) scores: their mean, largest or geometric mean."""
    if aggregation == "max":
        return np.stack([probs[:, row].max(axis=1, initial=0) for row in positive_map], axis=1)
    weights = positive_map.astype(np.float32)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
    if aggregation == "mean":
        return probs @ weights.T
    logs = np.log(np.maximum(probs, np.finfo(np.float32).tiny))
    return np.exp(logs @ weights.T) * positive_map.any(axis=1)


def _best_per_level(
    ranked: np.ndarray, level_sizes: Sequence[int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the best pairs of each level that are not negative, best first."""
    rows, columns = [], []
    start = 0
    for size in level_sizes:
        flat = ranked[start : start + size].ravel()
        best = np.flatnonzero(flat >= 0)
        best = best[np.argsort(-flat[best], kind="stable")[:count]]
        rows.append(start + best // ranked.shape[1])
        columns.append(best % ranked.shape[1])
        start += size
    return np.concatenate(rows), np.concatenate(columns)


def _nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_thresh: float
) -> np.ndarray:
    """Greedy non-maximum suppression of each label; the indices of what is kept, best first."""
    # Inclusive corners: a box of one pixel has an area of 1.
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) + 1
    areas = (high - low).prod(axis=1)
    kept = []
    for label in np.unique(labels):
        rest = np.flatnonzero(labels == label)
        rest = rest[np.argsort(-scores[rest], kind="stable")]
        while len(rest):
            best, rest = rest[0], rest[1:]
            kept.append(best)
            sides = np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])
            overlap = np.maximum(sides, 0).prod(axis=1)
            rest = rest[overlap / (areas[rest] + areas[best] - overlap) <= iou_thresh]
    indices = np.array(kept, dtype=np.int64)
    return indices[np.argsort(-scores[indices], kind="stable")]


def _resized(height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """The size of a photo in the network input: that of tests, or less, where it does not fit."""
    size, limit = settings["min_size"], settings["max_size"]
    short, long = min(height, width), max(height, width)
    if settings["resize"] == "TruncatedResizeShortestEdge":
        if long / short * size > limit:
            size = round(limit * short / long)
        new_short = max(size, 1)
        new_long = long if new_short == short and long <= limit else int(new_short * long / short)
        if long > STRIP_RATIO * short:
            new_long = min(new_long, limit)
    else:
        scale = size / short
        if long * scale > limit:
            scale = limit / long
        new_short, new_long = int(short * scale + 0.5), int(long * scale + 0.5)
    new = (new_short, new_long) if height <= width else (new_long, new_short)
    new_height, new_width = max(new[0], 1), max(new[1], 1)
    fit = min(settings["height"] / new_height, settings["width"] / new_width, 1)
    return max(round(new_height * fit), 1), max(round(new_width * fit), 1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))


def _unit_variance(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) of length sqrt(D)."""
    norms = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors / norms * np.float32(np.sqrt(vectors.shape[-1]))


def _load(image: str | Path | Image.Image) -> Image.Image:
    if not isinstance(image, Image.Image):
        try:
            image = Image.open(image, formats=FORMATS)  # noqa: TID251 - without PostScript
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"'{image}' is not an image that Pillow opens: {error}") from error
    return ImageOps.exif_transpose(image).convert("RGB")


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: pass a folder of glipv2 export")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind, version = settings["format"], settings["version"]
        if (kind, version) == ("onnx", VERSION):
            for section, keys in KEYS.items():
                for key in keys.split():
                    settings[section][key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is damaged: export the model again") from error
    if (kind, version) != ("onnx", VERSION):
        raise ValueError(
            f"'{path}' is of format {kind!r}, version {version!r}; this file reads 'onnx', "
            f"version {VERSION}: export the model again"
        )
    return settings


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: export the model again")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _session(path: Path, num_threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: export the model again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Warnings about shapes that only a run knows.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, which are not public
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} cannot load '{path}': {error}"
        ) from error


def main() -> int:
    parser = argparse.ArgumentParser(description="Detect objects of class names, without torch.")
    parser.add_argument("image", type=Path, help="a photo")
    parser.add_argument("names", help='class names: "cat, coffee cup"')
    parser.add_argument("--threshold", type=float, help="minimum score (default: the model's)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="the model")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    args = parser.parse_args()
    names = [name.strip() for name in args.names.split(",") if name.strip()]
    try:
        detector = Detector(args.folder, num_threads=args.threads)
        start = time.perf_counter()
        found = detector.detect(args.image, names, args.threshold)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for box, score, index in zip(*found, strict=True):
        sys.stdout.write(f"{names[index]}  {score:.3f}  {' '.join(f'{x:.1f}' for x in box)}\n")
    seconds = time.perf_counter() - start
    sys.stderr.write(f"{len(found.scores)} boxes in {seconds:.2f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
