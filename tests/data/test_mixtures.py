"""Several datasets in one training stream: sampling ratios, batch groups and bad records."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from helpers.tiny_coco import write_coco
from PIL import Image

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.stream import MAX_DRAWS, TrainLoader

Batch = list[dict[str, Any]]


@pytest.fixture
def two_datasets(cfg: CfgNode, tmp_path: Path, register: Callable[..., str]) -> CfgNode:
    second = register("second_coco", write_coco(tmp_path / "second", names=("dog", "bus")))
    cfg.DATASETS.TRAIN = ("tiny_coco", second)
    return cfg


def indices(loader: TrainLoader, count: int) -> list[int]:
    sampler = loader.make_sampler(loader.seed)
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize(("factor", "share"), [(3, 0.75), (0.5, 1 / 3)])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "WeightedTrainingSampler"])
def test_repeat_factor_sets_the_sampling_ratio(
    sampler: str, factor: float, share: float, two_datasets: CfgNode
) -> None:
    two_datasets.DATALOADER.SAMPLER_TRAIN = sampler
    two_datasets.DATASETS.TRAIN_REPEAT_FACTOR = [["second_coco", factor]]
    sampled = indices(build_train_loader(two_datasets), 2000)
    # Records 0 to 3 belong to the first dataset.
    assert sum(i >= 4 for i in sampled) / len(sampled) == pytest.approx(share, abs=0.05)


def test_rare_classes_are_counted_per_dataset(two_datasets: CfgNode) -> None:
    two_datasets.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    two_datasets.DATALOADER.REPEAT_THRESHOLD = 0.5
    counts = Counter(indices(build_train_loader(two_datasets), 4000))
    # Classes 1 and 2 of the first dataset are in 1/4 of its images, those of the second in 1/2.
    assert counts[1] > 1.2 * counts[0]
    assert counts[4] == pytest.approx(counts[5], rel=0.1)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([["no_such_set", 2]], "no_such_set"),
        ([["tiny_coco", 0]], "tiny_coco.*0"),
        ([["tiny_coco", "often"]], "often"),
        (["tiny_coco"], "pair"),
    ],
)
def test_invalid_repeat_factor_raises(
    factors: list[Any], message: str, two_datasets: CfgNode
) -> None:
    two_datasets.DATASETS.TRAIN_REPEAT_FACTOR = factors
    with pytest.raises(ValueError, match=message):
        build_train_loader(two_datasets)


def records(shapes: str) -> Batch:
    """An image per letter: wide ("w") or tall ("h")."""
    sizes = {"w": (10, 20), "h": (20, 10)}
    return [
        {"file_name": f"{i}", "height": sizes[s][0], "width": sizes[s][1]}
        for i, s in enumerate(shapes)
    ]


def loader(records: Batch, **kwargs: Any) -> TrainLoader:
    settings = {"batch_size": 2, "seed": 1, "aspect_ratio_grouping": True, "mapper": dict}
    return TrainLoader(
        records,
        make_sampler=lambda seed: TrainingSampler(len(records), seed=seed),
        **(settings | kwargs),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_grouped_batches_resume_as_without_interruption(num_workers: int) -> None:
    data = records("whwwhwhwhhw")
    whole = list(itertools.islice(loader(data), 12))
    resumed = loader(data, num_workers=num_workers)
    resumed.start_iteration = 7
    assert list(itertools.islice(resumed, 5)) == whole[7:]
    for batch in whole:
        assert len({x["width"] > x["height"] for x in batch}) == 1


def failing_mapper(*bad: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        if record["file_name"] in bad:
            raise OSError(f"{record['file_name']} is broken")
        return dict(record)

    return mapper


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_record_is_replaced_logged_and_counted(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = loader(records("wwwww"), mapper=failing_mapper("3"), num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        batches = list(itertools.islice(data, 10))
    assert all(len(batch) == 2 for batch in batches)
    assert "3" not in {x["file_name"] for batch in batches for x in batch}
    assert set().union(*(x.keys() for batch in batches for x in batch)) == {
        "file_name",
        "height",
        "width",
    }
    assert data.num_skipped >= 1
    assert "no. 1: 3 is broken" in caplog.text


@pytest.mark.parametrize("error", [KeyError("bbox"), MemoryError(), AssertionError("scale")])
def test_a_record_is_replaced_whatever_error_it_raises(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        if record["file_name"] == "3":
            raise error
        return dict(record)

    data = loader(records("wwwww"), mapper=mapper)
    with caplog.at_level(logging.WARNING):
        batches = list(itertools.islice(data, 10))
    assert "3" not in {x["file_name"] for batch in batches for x in batch}
    assert f"image '3' cannot be mapped ({type(error).__name__}: {error})" in caplog.text


def test_an_error_of_the_mapper_is_raised_with_its_cause() -> None:
    def mapper(_: dict[str, Any]) -> dict[str, Any]:
        raise AttributeError("no such transform")

    with pytest.raises(ValueError, match="image '.' cannot be mapped.*no such tr") as caught:
        next(iter(loader(records("ww"), mapper=mapper)))
    assert isinstance(caught.value.__cause__, AttributeError)


def test_replacement_is_the_same_after_resuming() -> None:
    whole = list(itertools.islice(loader(records("wwwww"), mapper=failing_mapper("3", "1")), 8))
    resumed = loader(records("wwwww"), mapper=failing_mapper("3", "1"))
    resumed.start_iteration = 3
    assert list(itertools.islice(resumed, 5)) == whole[3:]


def test_only_unusable_records_raise() -> None:
    data = loader(records("ww"), mapper=failing_mapper("0", "1"))
    with pytest.raises(ValueError, match=rf"{MAX_DRAWS} training records.*is broken"):
        next(iter(data))


def test_training_continues_after_a_broken_image(cfg: CfgNode, tmp_path: Path) -> None:
    broken = tmp_path / "tiny" / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    Image.new("RGB", (9, 9)).save(tmp_path / "tiny" / "images" / "1.png")  # of another size
    data = build_train_loader(cfg)
    loaded = {x["image_id"] for batch in itertools.islice(data, 6) for x in batch}
    assert loaded == {0, 3}
    assert data.num_skipped > 0


def test_invalid_class_names_raise_when_the_loader_is_built(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str]
) -> None:
    source = write_coco(tmp_path / "nameless", names=("dog", " "))
    cfg.DATASETS.TRAIN = (register("nameless_coco", source),)
    with pytest.raises(ValueError, match="nameless_coco.*index 1"):
        build_train_loader(cfg)
