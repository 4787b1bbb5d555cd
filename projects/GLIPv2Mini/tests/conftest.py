"""No network and no display, as for the tests of the core."""

from __future__ import annotations

import os

# Before transformers, huggingface_hub or matplotlib are imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# They hold no tests; searched for doctests, they would be imported again under a second name.
collect_ignore = ["mini_models.py", "mini_scenes.py", "qt_files.py"]
