"""Files of records: content, copies in other processes, and damage."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode

from glipv2_d2.data import record_store
from glipv2_d2.data.record_store import (
    HEADER_FILE,
    INDEX_FILE,
    RECORDS_FILE,
    RecordStore,
    StoredCaptions,
    StoredRecords,
    are_wide,
    write_store,
)

RECORDS: list[dict[str, Any]] = [
    {
        "file_name": f"{i}.jpg",
        "image_id": i,
        "height": 20,
        "width": 10 + 7 * i,
        "caption": f"a dög on sofa {i}",
        "phrases": [[(0, 5)], [(9, 13), (14, 15)]],
        "annotations": [
            {"bbox": [0.1, 2.0, 1e-9, 4.5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
        ],
        "dataset_name": "set",
    }
    for i in range(5)
]


def write(folder: Path, records: list[dict[str, Any]] = RECORDS, **metadata: Any) -> RecordStore:
    folder.mkdir(exist_ok=True)
    write_store(folder, records, dataset_name="set", get_metadata=lambda: metadata)
    return RecordStore(folder)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    monkeypatch.setattr(record_store, "CHUNK", 2)
    return write(tmp_path / "store")


def test_records_are_as_they_were_written(store: RecordStore) -> None:
    assert list(store) == RECORDS
    assert store[-1] == RECORDS[-1]
    assert isinstance(store[0]["annotations"][0]["bbox_mode"], BoxMode)
    with pytest.raises(IndexError):
        store[len(RECORDS)]


def test_wide_images_and_captions_are_found(store: RecordStore) -> None:
    assert are_wide(store).tolist() == [False, False, True, True, True]
    assert list(StoredCaptions(store)) == [record["caption"] for record in RECORDS]


def test_a_pickled_store_names_its_files(store: RecordStore) -> None:
    pickled = pickle.dumps(store)
    assert len(pickled) < 300
    assert list(pickle.loads(pickled)) == RECORDS


def test_several_stores_and_lists_are_one_sequence(store: RecordStore) -> None:
    joined = StoredRecords([store, RECORDS[:1], store])
    expected = [*RECORDS, RECORDS[0], *RECORDS]
    assert list(joined) == expected
    assert are_wide(joined).tolist() == are_wide(expected).tolist()


def test_metadata_keep_their_keys(tmp_path: Path) -> None:
    metadata = {"thing_classes": ["cat"], "thing_dataset_id_to_contiguous_id": {17: 0}}
    assert write(tmp_path, **metadata).metadata == metadata


def test_numbers_of_numpy_and_compressed_masks_are_stored(tmp_path: Path) -> None:
    mask = {"size": [20, 10], "counts": b"0a1"}
    annotation = {"bbox": np.array([1.5, 2]), "segmentation": mask}
    [record] = write(tmp_path, [{"image_id": np.int64(3), "annotations": [annotation]}])
    assert record["image_id"] == 3
    assert record["annotations"] == [
        {"bbox": [1.5, 2], "segmentation": {"size": [20, 10], "counts": "0a1"}}
    ]


def test_a_value_that_json_lacks_raises_with_the_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'3.jpg'.*object.*RECORD_STORE"):
        write(tmp_path, [{"file_name": "3.jpg", "extra": object()}])


def test_a_missing_store_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RecordStore(tmp_path / "nowhere")


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "index changed": lambda folder: flip_last_byte(folder / INDEX_FILE),
    "index cut": lambda folder: (folder / INDEX_FILE).write_bytes(b"abc"),
    "records cut": lambda folder: (folder / RECORDS_FILE).write_bytes(b"{}"),
    "records gone": lambda folder: (folder / RECORDS_FILE).unlink(),
    "header of another type": lambda folder: (folder / HEADER_FILE).write_text("[]"),
    "header cut": lambda folder: (folder / HEADER_FILE).write_text('{"dataset": "set"}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused(damage: str, store: RecordStore) -> None:
    DAMAGES[damage](store.folder)
    with pytest.raises(ValueError, match="damaged"):
        RecordStore(store.folder)


def test_a_damaged_record_raises_with_the_remedy(store: RecordStore) -> None:
    flip_last_byte(store.folder / RECORDS_FILE)
    intact = RecordStore(store.folder)
    assert list(itertools.islice(intact, 4)) == RECORDS[:4]
    with pytest.raises(ValueError, match=r"record 4 .*delete the folder"):
        intact[4]
