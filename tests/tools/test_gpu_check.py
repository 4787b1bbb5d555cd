from __future__ import annotations

import json
import subprocess
import time
import zipfile
from pathlib import Path

import gpu_check
import gpu_check_parts
import gpu_check_wheels
import pytest
from gpu_check_parts import PARTS, Emit, Part, Settings

from glipv2_cli import get_detectron2


def test_a_dry_run_on_the_cpu_reports_every_row(tmp_path: Path) -> None:
    assert gpu_check.main(["--device", "cpu", "--quick", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["device"] == "cpu" and report["quick"] is True
    rows = report["rows"]
    assert all(row.keys() == {"part", "name", "status", "value", "unit", "note"} for row in rows)
    of_part = {part.name: [row for row in rows if row["part"] == part.name] for part in PARTS}
    for part in PARTS:
        assert set(part.rows) <= {row["name"] for row in of_part[part.name]}
        if part.needs_gpu:
            assert {(row["status"], row["note"]) for row in of_part[part.name]} == {
                ("not run", "needs a GPU")
            }
    by_name = {row["name"]: row for row in rows}
    assert by_name["tests passed"]["value"] == 10
    assert by_name["inference fp32"]["value"] > 0
    table = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert len(table) == 2 + len(rows)


def raise_after_a_row(settings: Settings, emit: Emit) -> None:
    emit("first", 1.5, "ms")
    raise RuntimeError("no | such\nkernel")


def wait_after_a_row(settings: Settings, emit: Emit) -> None:
    emit("first", 1.5, "ms")
    time.sleep(600)


def emit_a_row(settings: Settings, emit: Emit) -> None:
    emit("only", "value")


def check(tmp_path: Path, *parts: Part, seconds: float = 400) -> list[gpu_check.Row]:
    return gpu_check.check(
        Settings("cpu", True, tmp_path),
        tmp_path,
        seconds=seconds,
        start=time.monotonic(),
        parts=parts,
    )


def test_a_part_that_raises_is_a_failed_row_and_the_next_part_runs(tmp_path: Path) -> None:
    failing = Part("failing", raise_after_a_row, ("first", "second"), 100)
    rows = check(tmp_path, failing, Part("next", emit_a_row, ("only",), 100))
    statuses = [(row["name"], row["status"], row["note"]) for row in rows]
    assert statuses == [
        ("first", "done", ""),
        ("failing", "failed", "RuntimeError: no | such\nkernel"),
        ("second", "not run", "the part failed"),
        ("only", "done", ""),
    ]
    table = (tmp_path / "gpu_check.md").read_text()
    assert "| failing | failing | failed | RuntimeError: no \\| such kernel |" in table
    assert "Traceback" in (tmp_path / "gpu_check.log").read_text()


def test_a_part_over_its_budget_keeps_its_rows(tmp_path: Path) -> None:
    # The processes start from one that has imported torch; the first of a run waits for that.
    check(tmp_path, Part("first", emit_a_row, (), 100))
    rows = check(tmp_path, Part("slow", wait_after_a_row, ("first", "second"), 6))
    assert [(row["status"], row["note"]) for row in rows] == [
        ("done", ""),
        ("not run", "not finished within 6 s"),
    ]


def test_a_part_without_time_is_not_run(tmp_path: Path) -> None:
    (row,) = check(tmp_path, Part("late", emit_a_row, ("only",), 100), seconds=12)
    assert (row["status"], row["note"]) == ("not run", "7 s are left")


def write_wheel(folder: Path, name: str, version: str = "1.0") -> Path:
    """A wheel with one module."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_only_missing_wheels_are_installed_to_the_folder(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    write_wheel(wheels, "absent_package_of_a_test")
    write_wheel(wheels, "yacs")
    assert gpu_check_wheels.install_missing(wheels, target) == ["absent-package-of-a-test"]
    assert (target / "absent_package_of_a_test.py").is_file()
    assert not (target / "yacs.py").exists()


def test_two_versions_of_a_wheel_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path, "yacs", "1.0")
    write_wheel(tmp_path, "yacs", "2.0")
    command = ["--wheels", str(tmp_path), "--output", str(tmp_path / "out")]
    assert gpu_check.main(command) == 2
    assert "yacs-2.0-py3-none-any.whl are one package; remove one" in capsys.readouterr().err


def test_a_folder_without_wheels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no wheels; write some with --prepare"):
        gpu_check_wheels.install_missing(tmp_path / "gone", tmp_path)


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of pip, which write an empty wheel per requirement."""
    calls = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--quiet") + 1 :][-1 - sum("==" in x for x in command)])
        for requirement in command:
            if "==" in requirement:
                name = requirement.replace("-", "_").replace("==", "-")
                tag = "cp312-cp312-manylinux_2_28_x86_64" if "coco" in name else "py3-none-any"
                (folder / f"{name}-{tag}.whl").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_check_wheels.subprocess, "run", run)
    monkeypatch.setattr(
        gpu_check_wheels,
        "repacked_wheel",
        lambda folder: (folder / get_detectron2.WHEEL).touch(),
    )
    return calls


def test_prepare_gets_wheels_for_the_other_machine(
    tmp_path: Path, pip_calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.main(["--prepare", str(tmp_path / "wheels")]) == 0
    download, build = pip_calls
    assert download[-1].startswith("pycocotools==")
    assert {"--only-binary=:all:", "manylinux_2_28_x86_64", "3.12"} <= set(download)
    assert "--no-deps" in build
    names = {Path(line).name.split("-")[0] for line in capsys.readouterr().out.splitlines()}
    assert {"detectron2", "fvcore", "iopath", "pycocotools", "omegaconf"} <= names


def test_a_wheel_for_this_machine_only_is_an_error(
    tmp_path: Path, pip_calls: list[list[str]]
) -> None:
    (tmp_path / "yacs-0.1-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(RuntimeError, match="for one platform only"):
        gpu_check_wheels.prepare(tmp_path)


def test_the_tests_of_the_check_exist() -> None:
    paths = (*gpu_check_parts.TESTS, gpu_check_parts.QUICK_TESTS[0])
    assert all((gpu_check.ROOT / path).exists() for path in paths)
