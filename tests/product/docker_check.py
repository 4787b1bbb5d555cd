"""Run the commands of the Dockerfile without Docker: RUN in a new environment, then the service.

    python tests/product/docker_check.py

Installs everything into a new virtual environment, which takes minutes and gigabytes. Commands that
change the system, not Python, are listed and left out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import httpx
import skimage
from wheel_check import ROOT, copy_sources

TIMEOUT = 120
# What the system of the image has, or what needs its root.
OF_THE_SYSTEM = ("apt-get", "useradd")


def main() -> None:
    instructions = read_dockerfile(ROOT / "Dockerfile")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        copy_sources(folder / "source")
        venv.create(folder / "venv", with_pip=True)
        environment = os.environ | {"PATH": f"{folder / 'venv/bin'}:{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        for kind, command in instructions:
            if kind == "RUN" and not command.startswith(OF_THE_SYSTEM):
                started = time.monotonic()
                quiet = command.replace("pip install", "pip install --quiet")
                subprocess.run(
                    quiet, shell=True, check=True, cwd=folder / "source", env=environment
                )
                print(f"RUN {command}: {time.monotonic() - started:.0f} s")
            elif kind == "RUN":
                print(f"left out: RUN {command}")
        entry_point = json.loads(dict(instructions)["ENTRYPOINT"])
        # A free port of this machine only.
        check_service([*entry_point, "--host", "127.0.0.1", "--port", "0"], folder, environment)


def read_dockerfile(file: Path) -> list[tuple[str, str]]:
    """The instructions and their arguments, lines joined."""
    lines = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in lines.splitlines() if line.strip())
    return [(kind, " ".join(argument.split())) for kind, argument in pairs]


def check_service(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    print(f"ENTRYPOINT {shlex.join(command)}")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next((word for word in line.split() if word.startswith("http://")), None)
        if url is None:
            sys.exit(f"the service did not start: {line!r}")
        with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
            client.get("/health").raise_for_status()
            photo = Path(skimage.__file__).parent / "data" / "chelsea.png"
            response = client.post(
                "/predict",
                files={"image": photo.read_bytes()},
                data={"classes": ["cat", "teapot"]},
            )
        response.raise_for_status()
        labels = [found["name"] for found in response.json()["detections"]]
        print(f"/predict: {labels}")
        if "cat" not in labels:
            sys.exit("the service does not detect the cat")
    finally:
        process.terminate()
        process.wait(TIMEOUT)


if __name__ == "__main__":
    main()
