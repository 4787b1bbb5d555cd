"""Build the wheel, install it into a new environment, and use it outside the repository.

Run by ``make wheel-check``. A .pth file gives the new environment the packages of this one, so that
only the wheel is installed, without a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

IN_WHEEL = (
    "glipv2_cli/py.typed",
    "glipv2_d2/py.typed",
    "glipv2_d2/configs/glip/glip_swin_t.yaml",
    "glipv2_d2/text/bert-base-uncased/vocab.txt",
    "glipv2_mini/py.typed",
    "glipv2_mini/assets/glipv2_mini.pth",
    "glipv2_mini/configs/glipv2_mini.yaml",
)

QUICK_START = """
import glipv2_d2, pathlib, sys
assert pathlib.Path(glipv2_d2.__file__).is_relative_to(sys.prefix), glipv2_d2.__file__
from glipv2_d2 import Predictor
predictor = Predictor("glipv2-mini")
prediction = predictor.predict("photo.png", classes=["cat", "coffee cup"])
print(prediction.labels, prediction.instances.scores, prediction.instances.pred_boxes)
assert "cat" in prediction.labels
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        wheel = build_wheel(folder)
        with zipfile.ZipFile(wheel) as archive:
            missing = set(IN_WHEEL) - set(archive.namelist())
        if missing:
            sys.exit(f"{wheel.name} lacks {sorted(missing)}")
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
        check_with_detectron2(wheel, folder)
        check_without_detectron2(wheel, folder)


def build_wheel(folder: Path) -> Path:
    copy_sources(folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_sources(folder: Path) -> None:
    """Copy the files that git knows: a build folder may contain old ones."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def new_environment(folder: Path, wheel: Path, packages: Path) -> Path:
    """Make a virtual environment with the wheel and ``packages``; return its folder of scripts.

    Args:
        packages: a folder like site-packages, whose own .pth files have no effect.
    """
    venv.create(folder, with_pip=False)
    scripts = folder / "bin"
    python = scripts / "python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    Path(site, "packages.pth").write_text(f"{packages}\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    return scripts


def check_with_detectron2(wheel: Path, folder: Path) -> None:
    from skimage import data

    site = Path(sysconfig.get_path("purelib"))
    scripts = new_environment(folder / "environment", wheel, site)
    empty = folder / "empty"
    empty.mkdir()
    shutil.copyfile(Path(data.__file__).with_name("chelsea.png"), empty / "photo.png")
    start = time.monotonic()
    run([scripts / "glipv2", "--help"], empty)
    print(f"glipv2 --help: {time.monotonic() - start:.2f} s")
    run([scripts / "python", "-c", QUICK_START], empty)
    run([scripts / "glipv2", "predict", "photo.png", "--classes", "cat", "--save", "coco"], empty)
    (empty / "names.txt").write_text("cat: 0.5\ncoffee cup\n", encoding="utf-8")
    label = ["label", "--images", "photo.png", "--classes-file", "names.txt"]
    run([scripts / "glipv2", *label, "--output", "labels", "--format", "yolo"], empty)
    run([scripts / "glipv2", "train", "--help"], empty)


def check_without_detectron2(wheel: Path, folder: Path) -> None:
    """Without Detectron2 the error is one line that names the command which installs it."""
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("detectron2", "__editable__")):
            (packages / entry.name).symlink_to(entry)
    scripts = new_environment(folder / "bare", wheel, packages)
    command = [scripts / "python", "-c", "import glipv2_d2"]
    result = run(command, folder, expected=1)
    if not result.splitlines()[-1].endswith("glipv2 setup-detectron2"):
        sys.exit(f"without Detectron2 {command} prints {result!r}")
    command = [scripts / "glipv2", "predict", "photo.png", "--classes", "cat"]
    result = run(command, folder, expected=2)
    if result.count("\n") != 1 or "glipv2 setup-detectron2" not in result:
        sys.exit(f"without Detectron2 {command} prints {result!r}")
    run([scripts / "glipv2", "setup-detectron2", "--help"], folder)


def run(command: list[str | Path], folder: Path, expected: int = 0) -> str:
    """Run a command in ``folder``; return and print what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shown = " ".join(str(part) for part in command[1:]).splitlines()[0]
    print(f"$ {Path(command[0]).name} {shown}\n{result.stdout}")
    if result.returncode != expected:
        sys.exit(f"exit code {result.returncode}, expected {expected}")
    return result.stdout


if __name__ == "__main__":
    main()
