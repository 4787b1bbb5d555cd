from __future__ import annotations

from pathlib import Path

import pytest

from glipv2_d2.engine.shards import Part, check_settings, split


def test_parts_have_every_shard_once(tmp_path: Path) -> None:
    shards = split(list(range(23)), tmp_path, 2, ".jsonl")
    parts = [Part.parse(f"{number}/5").of(shards) for number in range(1, 6)]
    assert sorted(shard.path.name for part in parts for shard in part) == [
        f"{number:05d}.jsonl" for number in range(12)
    ]
    assert [item for shard in shards for item in shard.items] == list(range(23))


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1 / 2"])
def test_what_is_no_part_is_named_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not a part such as 2/8"):
        Part.parse(text)


def test_settings_that_are_not_json_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(ValueError, match=r"settings\.json' has no settings"):
        check_settings(tmp_path, {"a": 1})


def test_first_settings_leave_one_file(tmp_path: Path) -> None:
    check_settings(tmp_path, {"names": ("cat",), "size": 2})
    check_settings(tmp_path, {"names": ["cat"], "size": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    with pytest.raises(ValueError, match="size was 2 and is 3"):
        check_settings(tmp_path, {"names": ["cat"], "size": 3})
