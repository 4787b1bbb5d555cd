"""Package metadata. Detectron2 is not a requirement: see glipv2_cli/get_detectron2.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# The small model, a package of its own; relative, as setuptools requires of package_dir.
MINI = Path("projects/GLIPv2Mini")
EXTRAS = (
    "app",
    "captions",
    "dev",
    "docs",
    "export",
    "fast-eval",
    "heic",
    "lora",
    "lvis",
    "mini-data",
    "mlflow",
    "phrases",
    "ray",
    "remote",
    "serve",
    "supervision",
    "wandb",
    "webdataset",
)


def requirements(name: str) -> list[str]:
    """The lines of ``requirements/NAME.txt``, comments aside."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def version() -> str:
    """``__version__`` of the package, read without importing it (and with it torch)."""
    text = (ROOT / "glipv2_d2" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('glipv2_d2/__init__.py has no line __version__ = "..."')
    return found[1]


setup(
    name="glipv2_d2",
    version=version(),
    description="GLIPv2 on Detectron2: type class names or a caption, get boxes",
    license="Apache-2.0",
    license_files=["LICENSE", f"{MINI}/NOTICE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["glipv2_cli", "glipv2_d2", "glipv2_d2.*"]),
        *find_packages(str(MINI), include=["glipv2_mini", "glipv2_mini.*"]),
        "glipv2_d2.configs",
        "glipv2_mini.configs",
    ],
    # Models are found by name, and the commands run, without a checkout.
    package_dir={
        "glipv2_mini": f"{MINI}/glipv2_mini",
        "glipv2_mini.configs": f"{MINI}/configs",
        "glipv2_d2.configs": "configs",
    },
    package_data={
        "glipv2_cli": ["py.typed"],
        "glipv2_d2": ["py.typed", "text/bert-base-uncased/*", "**/assets/*"],
        "glipv2_d2.configs": ["**/*.yaml", "**/*.py"],
        "glipv2_mini": ["py.typed", "assets/*"],
        "glipv2_mini.configs": ["*.yaml"],
    },
    entry_points={
        "console_scripts": ["glipv2 = glipv2_cli.main:main"],
        "glipv2_d2.projects": ["glipv2_mini = glipv2_mini:PROJECT"],
    },
    install_requires=requirements("runtime"),
    extras_require={
        **{name: requirements(name) for name in EXTRAS},
        # The small model reads the nouns of questions.
        "mini": requirements("mini") + requirements("phrases"),
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
