"""Installation of Detectron2 and the repacked wheel, without a network."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from glipv2_cli import get_detectron2
from glipv2_cli.get_detectron2 import (
    DIST_INFO,
    EDITS,
    WHEEL,
    GetDetectron2Error,
    check_sha256,
    repack,
)

COMPILED_MODULE = "detectron2/_C.cpython-310-x86_64-linux-gnu.so"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A wheel with the file types of the published one."""
    wheel = tmp_path / "published.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tools/train_net.py", "")
        archive.writestr("detectron2/model_zoo/configs/base.yaml", "VERSION: 2\n")
        archive.writestr(COMPILED_MODULE, b"\x7fELF")
        for edit in EDITS:
            archive.writestr(edit.file, f"before\n{edit.old}\nafter\n")
        archive.writestr("sal_detectron2-0.7.2.dist-info/LICENSE", "Apache License")
        archive.writestr("sal_detectron2-0.7.2.dist-info/METADATA", "Requires-Dist: numpy<2\n")
    return wheel


@pytest.fixture
def repacked(published: Path, tmp_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(repack(published, tmp_path / "repacked"))


def run_script(*args: str, import_path: Path, spec: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with ``import_path`` before the installed packages."""
    return subprocess.run(
        [sys.executable, get_detectron2.__file__, *args],
        env={**os.environ, "PYTHONPATH": str(import_path), "DETECTRON2_SPEC": spec},
        capture_output=True,
        text=True,
        check=False,
    )


def write_package(folder: Path, source: str) -> Path:
    package = folder / "detectron2"
    for name in ("", "model_zoo", "modeling"):
        (package / name).mkdir(exist_ok=True)
        (package / name / "__init__.py").write_text("")
    (package / "__init__.py").write_text(source)
    return package


def test_repacked_wheel_has_the_python_files_and_the_license(repacked: zipfile.ZipFile) -> None:
    assert set(repacked.namelist()) == {
        "detectron2/__init__.py",
        "detectron2/evaluation/sem_seg_evaluation.py",
        "detectron2/model_zoo/configs/base.yaml",
        *(f"{DIST_INFO}/{name}" for name in ("LICENSE", "METADATA", "RECORD", "WHEEL")),
        f"{DIST_INFO}/top_level.txt",
    }


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.file)
def test_edit_changes_one_line_only(repacked: zipfile.ZipFile, edit: get_detectron2.Edit) -> None:
    assert repacked.read(edit.file).decode() == f"before\n{edit.new}\nafter\n"


def test_record_lists_every_file_with_hash_and_size(repacked: zipfile.ZipFile) -> None:
    expected = {f"{DIST_INFO}/RECORD,,"}
    for name in set(repacked.namelist()) - {f"{DIST_INFO}/RECORD"}:
        data = repacked.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        expected.add(f"{name},sha256={digest},{len(data)}")
    assert set(repacked.read(f"{DIST_INFO}/RECORD").decode().splitlines()) == expected


def test_metadata_does_not_limit_numpy(repacked: zipfile.ZipFile) -> None:
    assert "numpy<2" not in repacked.read(f"{DIST_INFO}/METADATA").decode()


def test_repacking_is_reproducible(published: Path, tmp_path: Path) -> None:
    first, second = (repack(published, tmp_path / name) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_pip_installs_the_repacked_wheel(published: Path, tmp_path: Path) -> None:
    wheel = repack(published, tmp_path)
    target = tmp_path / "site"
    get_detectron2.pip(
        "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)
    )
    assert (target / "detectron2" / "__init__.py").is_file()


def test_no_temporary_file_remains_beside_the_wheel(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    repack(published, folder)
    assert [file.name for file in folder.iterdir()] == [WHEEL]


@pytest.mark.parametrize("times", [0, 2])
def test_edit_that_does_not_apply_once_is_rejected(times: int) -> None:
    edit = EDITS[0]
    with pytest.raises(GetDetectron2Error, match=f"{edit.file} .* contains it {times} times"):
        edit.apply(edit.old.encode() * times)


def test_wrong_hash_is_rejected_with_both_hashes(published: Path) -> None:
    found = hashlib.sha256(published.read_bytes()).hexdigest()
    with pytest.raises(GetDetectron2Error, match=f"published.whl .* {found}, not 00ff"):
        check_sha256(published, "00ff")


def test_download_with_wrong_hash_is_neither_repacked_nor_installed(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: str) -> None:
        assert args[0] == "download"
        folder = Path(args[args.index("--dest") + 1])
        (folder / published.name).write_bytes(published.read_bytes())

    monkeypatch.setattr(get_detectron2, "pip", download)
    with pytest.raises(SystemExit, match="sha256"):
        get_detectron2.main(["--wheel-dir", str(tmp_path / "wheels")])
    assert not (tmp_path / "wheels").exists()


def test_importable_detectron2_is_kept_even_with_a_spec(tmp_path: Path) -> None:
    package = write_package(tmp_path, "__version__ = '1.2.3'\n")
    result = run_script("--spec", "/nowhere/detectron2", import_path=tmp_path)
    assert result.stdout == f"kept detectron2 1.2.3 at {package}\n"
    assert result.returncode == 0


def test_broken_detectron2_is_reported_and_not_replaced(tmp_path: Path) -> None:
    write_package(tmp_path, "import a_module_that_is_missing\n")
    result = run_script(import_path=tmp_path)
    assert result.returncode == 1
    assert "cannot be imported" in result.stderr
    assert "a_module_that_is_missing" in result.stderr


def test_spec_is_passed_to_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    locations = iter([None, "detectron2 0.6 at /checkout"])
    monkeypatch.setattr(get_detectron2, "locate", lambda: next(locations))
    monkeypatch.setattr(get_detectron2, "pip", lambda *args: calls.append(args))
    report = get_detectron2.provide("/checkout")
    assert calls == [("install", "--no-build-isolation", "/checkout")]
    assert report == "installed from /checkout: detectron2 0.6 at /checkout"


def test_failing_pip_is_an_error_with_the_command(tmp_path: Path) -> None:
    write_package(tmp_path, "import a_module_that_is_missing\n")
    result = run_script(import_path=tmp_path, spec=str(tmp_path / "missing.whl"))
    assert result.returncode == 1
    assert f"get_detectron2: failed, see above: {sys.executable} -m pip install" in result.stderr


def test_the_tool_of_the_checkout_is_the_command(tmp_path: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "get_detectron2.py"
    result = subprocess.run(
        [sys.executable, str(tool), "--help"], capture_output=True, text=True, check=True
    )
    assert "--wheel-dir" in result.stdout
