"""Run the notebooks of the documentation in an empty folder.

python tests/product/notebook_check.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
# Seconds of a cell.
TIMEOUT = 900


def main() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}}
            )
            try:
                client.execute()
            finally:
                # Also those before an error.
                print(f"{path.name}: {time.monotonic() - start:.0f} s")
                print("".join(outputs(notebook)))


def outputs(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What the cells printed."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield output.text


if __name__ == "__main__":
    main()
