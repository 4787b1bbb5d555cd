"""Install Detectron2, before or after this project: what ``glipv2 setup-detectron2`` runs."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "glipv2_cli" / "get_detectron2.py"
runpy.run_path(str(SCRIPT), run_name="__main__")
