"""Metrics of captions: what pycocoevalcap is given, what is written, and what is missing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation import build_evaluator, captions
from glipv2_d2.evaluation.caption_tokenizer import tokenize, tokenize_caption
from glipv2_d2.evaluation.captions import CaptionEvaluator, NotComputedError, score_captions

REFERENCES = [["A cat on a mat."], ["two dogs run"]]
CAPTIONS = ["a cat on a mat", "Two dogs."]
PTB_MODULE = "pycocoevalcap.tokenizer.ptbtokenizer"


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java takes seconds to start, and is not everywhere."""
    monkeypatch.setattr("shutil.which", lambda _: None)


def test_a_worked_example() -> None:
    metrics = score_captions(CAPTIONS, REFERENCES).metrics
    # All 7 words are right; the references have 8.
    brevity = math.exp(1 - 8 / 7)
    assert metrics["BLEU-1"] == pytest.approx(100 * brevity)
    # Of 5, 3, 2 pairs, triples, quadruples of words, none is wrong.
    assert metrics["BLEU-4"] == pytest.approx(100 * brevity)
    # The second has precision 1 and recall 2/3; beta is 1.2.
    recall = 2 / 3
    second = (1 + 1.44) * recall / (recall + 1.44)
    assert metrics["ROUGE-L"] == pytest.approx(100 * (1 + second) / 2)


def test_cider_of_a_worked_example() -> None:
    scores = score_captions(CAPTIONS, REFERENCES)
    # No word is in both images' references: all weigh the same. The second caption has 2 of the
    # reference's 3 words, 1 of its 2 pairs, no triple and no quadruple; it is a pair shorter.
    cosines = (2 / math.sqrt(2 * 3), 1 / math.sqrt(2), 0, 0)
    second = sum(cosines) / 4 * math.exp(-1 / (2 * 6**2))
    # Times 10 is CIDEr's own scale, times 100 that of the papers.
    assert scores.cider_per_image == pytest.approx([1000, 1000 * second])
    assert scores.metrics["CIDEr"] == pytest.approx(500 * (1 + second))


def test_the_closest_of_several_references_counts() -> None:
    metrics = score_captions(CAPTIONS, [["a cat", "a cat on a mat"], ["two dogs", "x y z"]]).metrics
    assert metrics["BLEU-4"] == pytest.approx(100)
    assert metrics["ROUGE-L"] == pytest.approx(100)


def test_an_empty_caption_scores_zero() -> None:
    scores = score_captions(["", "two dogs run"], REFERENCES)
    assert scores.cider_per_image[0] == 0
    assert scores.metrics["ROUGE-L"] == pytest.approx(50)


def test_a_metric_without_java_has_a_reason_and_no_value() -> None:
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.not_computed == {
        "METEOR": "Java is not installed",
        "SPICE": "Java is not installed",
    }
    assert scores.metrics.keys() == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    assert "Java is not installed" in scores.tokenizer


def test_a_failing_java_program_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise BrokenPipeError("the program exited")

    monkeypatch.setitem(captions.JAVA_METRICS, "METEOR", broken)
    monkeypatch.setitem(captions.JAVA_METRICS, "SPICE", lambda *_: 0.21)
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.not_computed == {"METEOR": "the program exited"}
    assert scores.metrics["SPICE"] == 21


def test_spice_does_not_download_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/java")
    monkeypatch.setattr(captions, "SPICE_MODELS", ("absent.jar",))
    with pytest.raises(NotComputedError, match="get_stanford_models"):
        captions.JAVA_METRICS["SPICE"]({}, {})


# Output of Stanford's program (CoreNLP 3.4.1, as in pycocoevalcap 1.2).
PTB_TOKENS = {
    "A man's dog can't jump over the dogs' fence.": "a man 's dog ca n't jump over the dogs fence",
    "Two cats, one black-and-white, sit; don't they?": (
        "two cats one black-and-white sit do n't they"
    ),
    "1/2 of 1,000 apples at 5:30 p.m.": "1/2 of 1,000 apples at 5:30 p.m.",
    "The U.S. flag, etc.": "the u.s. flag etc.",
    "dog,cat": "dog cat",
    "It's a T-shirt (red)": "it 's a t-shirt -lrb- red -rrb-",
    '"Hello" he read -- loudly...': "hello he read loudly",
    "I'm gonna cannot": "i 'm gon na can not",
    "50% $20 #1 a & b": "50 % $ 20 # 1 a & b",
    "Mr. Smith's St. Bernard": "mr. smith 's st. bernard",
    "a 'quoted' word": "a quoted word",
    "wow!!! really??": "wow !!! really ??",
    "1980's '80s": "1980 's '80s",
    "a-b -c d- e": "a-b c d e",
    "foo\u2014bar \u2026 \u201cq\u201d it\u2019s": "foo bar q it 's",
    "": "",
}


@pytest.mark.parametrize("caption", PTB_TOKENS)
def test_the_fallback_tokenizer_agrees_with_ptb(caption: str) -> None:
    assert tokenize_caption(caption) == PTB_TOKENS[caption]


def test_whitespace_is_normalised() -> None:
    [[tokens]] = tokenize([["a cat\n on\ta mat"]]).captions_per_image
    assert tokens == "a cat on a mat"


@pytest.fixture
def ptb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces Stanford's program by a function."""

    def replace_ptb(tokenize: Callable[..., Any]) -> None:
        monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/java")
        monkeypatch.setattr(f"{PTB_MODULE}.PTBTokenizer.tokenize", tokenize)

    return replace_ptb


def test_stanfords_program_receives_all_captions_of_all_images(ptb: Callable[..., None]) -> None:
    ptb(lambda _, images: {i: [x["caption"].upper() for x in images[i]] for i in images})
    tokenized = tokenize([["a cat", "one\ncat"], [], ["a dog"]])
    # It returns no entry for an image without captions.
    assert tokenized == ([["A CAT", "ONE CAT"], [], ["A DOG"]], "PTB")


def test_a_program_that_exits_early_is_reported(ptb: Callable[..., None]) -> None:
    ptb(lambda _, images: {0: ["a cat"]})
    tokenized = tokenize([["A cat."], ["A dog."]])
    assert tokenized.captions_per_image == [["a cat"], ["a dog"]]
    assert tokenized.tokenizer == "Python replacement of PTB: the Java program exited early"


def test_a_program_that_does_not_start_is_reported(ptb: Callable[..., None]) -> None:
    def broken(*_: Any) -> None:
        raise PermissionError("no access")

    ptb(broken)
    assert tokenize([["A cat."]]) == ([["a cat"]], "Python replacement of PTB: no access")


def record(image_id: int, texts: list[str]) -> dict[str, Any]:
    return {"file_name": f"{image_id}.jpg", "image_id": image_id, "target_captions": texts}


@pytest.fixture
def described(request: pytest.FixtureRequest) -> Iterator[str]:
    texts = getattr(request, "param", REFERENCES)
    records = [record(i, list(of_image)) for i, of_image in zip((8, 5), texts, strict=True)]
    DatasetCatalog.register("described", lambda: records)
    MetadataCatalog.get("described").set(evaluator_type="captions")
    yield "described"
    DatasetCatalog.remove("described")
    MetadataCatalog.remove("described")


def process(evaluator: Any) -> None:
    evaluator.reset()
    # In another order than the dataset.
    evaluator.process([record(5, [])], [{"caption": CAPTIONS[1]}])
    evaluator.process([record(8, [])], [{"caption": CAPTIONS[0]}])


def test_scores_and_the_result_file_are_written(
    described: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = build_evaluator(load_config(opts=["OUTPUT_DIR", str(tmp_path)]), described)
    process(evaluator)
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()
    expected = score_captions(CAPTIONS, REFERENCES)
    assert results == {"captions": expected.metrics}
    folder = tmp_path / "inference" / described
    assert json.loads((folder / "captions_results.json").read_text()) == [
        {"image_id": 8, "caption": CAPTIONS[0]},
        {"image_id": 5, "caption": CAPTIONS[1]},
    ]
    written = json.loads((folder / "caption_scores.json").read_text())
    assert written["not_computed"].keys() == {"METEOR", "SPICE"}
    assert written["tokenizer"] == expected.tokenizer
    assert [entry["image_id"] for entry in written["cider_per_image"]] == [8, 5]
    assert "METEOR was not computed: Java is not installed" in caplog.text
    assert "Python replacement of PTB" in caplog.text


@pytest.mark.parametrize("described", [[[], []]], indirect=True)
def test_a_test_set_has_a_result_file_and_no_scores(described: str, tmp_path: Path) -> None:
    evaluator = CaptionEvaluator(described, str(tmp_path))
    process(evaluator)
    assert evaluator.evaluate() == {}
    assert len(json.loads((tmp_path / "captions_results.json").read_text())) == 2


def test_a_missing_package_raises_an_error(
    described: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install pycocoevalcap"):
        CaptionEvaluator(described, str(tmp_path))
