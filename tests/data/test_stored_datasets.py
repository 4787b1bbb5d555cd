"""Training from record stores: the same batches as from memory, built once, and rebuilt."""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.data import stored_datasets
from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.readers.captions import register_captions
from glipv2_d2.data.record_store import INDEX_FILE, RECORDS_FILE
from glipv2_d2.data.stored_datasets import FOLDER, open_stores

CAPTIONS = ("a dog on a sofa", "a red bus left of a tree", "", "a cat")


def write_captions(folder: Path) -> tuple[str, str]:
    """Captions of the images of ``write_coco``, one of them empty, one box beyond its image."""
    _, images = write_coco(folder)
    lines = [
        {
            "image": f"{i}.png",
            "caption": caption,
            "boxes": [[2, 3, 30, 20], [9, 5, 90, 40]],
            "spans": [[[0, 5]], [[2, 5]]],
            "scores": [0.9, 0.7],
            "height": 48,
            "width": 48 + i,
        }
        for i, caption in enumerate(CAPTIONS)
    ]
    path = folder / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path), str(images)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLIPV2_D2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mixed(cfg: CfgNode, tmp_path: Path) -> Any:
    """Classes and captions, in groups by aspect ratio."""
    register_captions("stored_captions", *write_captions(tmp_path / "captions"))
    cfg.DATASETS.TRAIN = ("tiny_coco", "stored_captions")
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    yield cfg
    DatasetCatalog.remove("stored_captions")
    MetadataCatalog.remove("stored_captions")


def take(
    cfg: CfgNode, count: int, *, use_store: bool, start: int = 0, num_workers: int = 0
) -> list[dict[str, Any]]:
    cfg.DATALOADER.RECORD_STORE = use_store
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = build_train_loader(cfg)
    loader.start_iteration = start
    return list(itertools.chain(*itertools.islice(loader, count)))


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert x.keys() == y.keys()
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        same = x.keys() - {"image", "instances"}
        assert {key: x[key] for key in same} == {key: y[key] for key in same}


def test_batches_of_a_store_are_those_from_memory(mixed: CfgNode) -> None:
    from_memory = take(mixed, 6, use_store=False)
    assert_same(take(mixed, 6, use_store=True), from_memory)
    assert_same(take(mixed, 2, use_store=True, start=4, num_workers=2), from_memory[8:])


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_repeated_records_of_a_store_are_those_from_memory(sampler: str, mixed: CfgNode) -> None:
    mixed.DATALOADER.SAMPLER_TRAIN = sampler
    mixed.DATALOADER.REPEAT_THRESHOLD = 0.5
    mixed.DATASETS.TRAIN_REPEAT_FACTOR = [["stored_captions", 2.5]]
    assert_same(take(mixed, 8, use_store=True), take(mixed, 8, use_store=False))


def test_texts_of_one_image_are_merged_as_from_memory(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str]
) -> None:
    annotations, images = write_coco(tmp_path / "texts")
    records = [
        {"file_name": str(images / f"{i % 2}.png"), "target_captions": [f"number {i}"]}
        for i in range(5)
    ]
    register("texts", lambda: records, source_files=(str(annotations),))
    cfg.DATASETS.TRAIN = ("texts", "tiny_coco")
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.TEXTS_PER_IMAGE = 2
    cfg.SOLVER.IMS_PER_BATCH = 1
    from_store, from_memory = (take(cfg, 9, use_store=use_store) for use_store in (True, False))
    texts = [[x.get("target_captions"), x.get("more")] for x in from_memory]
    assert [[x.get("target_captions"), x.get("more")] for x in from_store] == texts
    assert any(more for _, more in texts)


def test_crowds_are_dropped_and_class_names_are_known_without_the_reader(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations, images = write_coco(tmp_path / "crowded")
    content = json.loads(annotations.read_text())
    content["annotations"][0]["iscrowd"] = 1
    annotations.write_text(json.dumps(content))
    cfg.DATASETS.TRAIN = (register("crowded", (annotations, images)),)
    [built] = open_stores(cfg).values()
    assert [record["image_id"] for record in built] == [1, 2, 3]
    assert built[0]["annotations"][0]["bbox_mode"] == BoxMode.XYXY_ABS
    del MetadataCatalog.get("crowded").thing_classes
    monkeypatch.setattr(stored_datasets, "write_store", None)
    open_stores(cfg)
    assert MetadataCatalog.get("crowded").thing_classes == list(NAMES)


def folders(cfg: CfgNode) -> list[Path]:
    return [store.folder for store in open_stores(cfg).values()]


def test_a_store_is_beside_its_annotation_file_and_kept(mixed: CfgNode, tmp_path: Path) -> None:
    first = folders(mixed)
    assert [folder.parent for folder in first] == [
        tmp_path / "tiny" / FOLDER,
        tmp_path / "captions" / FOLDER,
    ]
    states = [(folder / INDEX_FILE).stat() for folder in first]
    assert folders(mixed) == first
    assert [(folder / INDEX_FILE).stat() for folder in first] == states


def test_a_store_in_a_folder_that_cannot_be_written_is_in_the_cache(
    cfg: CfgNode, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "tiny" / FOLDER).write_text("not a folder")
    [folder] = folders(cfg)
    assert folder.parent == cache / FOLDER
    cache_file = tmp_path / "file"
    cache_file.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIPV2_D2_CACHE", str(cache_file))
        with pytest.raises(OSError, match=r"tiny_coco.*GLIPV2_D2_CACHE"):
            open_stores(cfg)


@pytest.mark.parametrize(
    "change",
    [
        {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": False},
        {"MODEL.PROMPT.MAX_TOKENS": 64},
    ],
)
def test_other_settings_have_their_own_store(change: dict[str, Any], cfg: CfgNode) -> None:
    [first] = folders(cfg)
    cfg.merge_from_list(list(itertools.chain(*change.items())))
    [second] = folders(cfg)
    assert second != first
    assert first.is_dir()


def test_a_changed_annotation_file_is_read_again(cfg: CfgNode, tmp_path: Path) -> None:
    [before] = open_stores(cfg).values()
    file = tmp_path / "tiny" / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["bbox"] = [0, 0, 7, 7]
    file.write_text(json.dumps(content))
    [after] = open_stores(cfg).values()
    assert before[1]["annotations"][0]["bbox"] == [4, 6, 24, 22]
    assert after[1]["annotations"][0]["bbox"] == [0, 0, 7, 7]


def test_a_damaged_store_is_built_again(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    [store] = open_stores(cfg).values()
    expected = list(store)
    (store.folder / INDEX_FILE).write_bytes(b"damaged")
    [store] = open_stores(cfg).values()
    assert list(store) == expected
    assert "is damaged" in caplog.text


def test_a_failed_build_leaves_nothing(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stored_datasets, "write_store", fail)
        with pytest.raises(KeyboardInterrupt):
            open_stores(cfg)
    [folder] = folders(cfg)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def _open_in_process(cfg: CfgNode, log: Path) -> None:
    write = stored_datasets.write_store

    def logging_write(*args: Any, **kwargs: Any) -> None:
        with log.open("a") as file:
            file.write("built\n")
        write(*args, **kwargs)

    stored_datasets.write_store = logging_write
    [store] = open_stores(cfg).values()
    assert len(store) == 4


def test_two_processes_build_a_store_once(cfg: CfgNode, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log.txt"
    processes = [context.Process(target=_open_in_process, args=(cfg, log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"


@pytest.mark.parametrize(
    ("source", "message"), [((), "source_files"), (("s3://bucket/file.json",), "download it")]
)
def test_a_dataset_without_local_source_files_raises_with_the_remedy(
    source: tuple[str, ...],
    message: str,
    cfg: CfgNode,
    register: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_datasets, "check_paths", lambda _: None)
    cfg.DATASETS.TRAIN = (register("sourceless", list, source_files=source),)
    with pytest.raises(ValueError, match=rf"sourceless.*{message}"):
        open_stores(cfg)


def test_a_dataset_without_usable_records_raises(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str]
) -> None:
    file = tmp_path / "empty.json"
    file.write_text("{}")
    cfg.DATASETS.TRAIN = (register("empty", list, source_files=(str(file),)),)
    with pytest.raises(ValueError, match="empty.*no usable training image"):
        open_stores(cfg)


def test_a_damaged_record_ends_the_training(cfg: CfgNode) -> None:
    [store] = open_stores(cfg).values()
    file = store.folder / RECORDS_FILE
    file.write_bytes(file.read_bytes().replace(b"image_id", b"image_xx"))
    with pytest.raises(ValueError, match="damaged: delete the folder"):
        take(cfg, 1, use_store=True)
