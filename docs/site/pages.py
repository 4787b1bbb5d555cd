"""Pages that mkdocs makes of other files: documents, config keys, and the API.

Run by the plugin gen-files. Links to files of the repository that have no page become their names.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "glipv2_d2"

# File of the repository -> page.
DOCUMENTS = {
    "README.md": "index.md",
    "GETTING_STARTED.md": "getting_started.md",
    "MODEL_ZOO.md": "model_zoo.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "datasets.md",
    "projects/GLIPv2Mini/README.md": "mini.md",
    "projects/GLIPv2Mini/MODEL_CARD.md": "mini_model_card.md",
}
# Already in docs/.
OWN_PAGES = {
    f"docs/{name}": name
    for name in (
        *("detectron2.md", "export.md", "glip_reference.md", "performance.md", "ray.md"),
        "recipes.md",
    )
}
IMAGES = {"docs/photos.jpg": "photos.jpg"}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_KEY = re.compile(r"^    cfg\.([A-Z][\w.]*) = (.+)$")


def main() -> None:
    targets = DOCUMENTS | OWN_PAGES | IMAGES
    for source, page in (DOCUMENTS | OWN_PAGES).items():
        write(page, relink((ROOT / source).read_text(encoding="utf-8"), source, targets))
    write("config_keys.md", "\n".join(config_keys()))
    modules = sorted(module_names())
    for module in modules:
        options = "    options:\n      show_root_heading: false\n"
        write(api_page(module), f"# {module}\n\n::: {module}\n{options}")
    listed = "\n".join(
        f"- [{module}]({posixpath.basename(api_page(module))})" for module in modules
    )
    write("api/index.md", f"# API\n\nOne page per module.\n\n{listed}\n")


def write(page: str, content: str) -> None:
    with mkdocs_gen_files.open(page, "w") as file:
        file.write(content)


def relink(text: str, source: str, targets: dict[str, str]) -> str:
    """The text of a file of the repository, with links to pages.

    >>> relink("[a](b.md#c), [d](e.py)", "docs/x.md", {"docs/b.md": "b.md"})
    '[a](b.md#c), `d`'
    """

    def link(match: re.Match[str]) -> str:
        image, label, address = match.groups()
        if re.match(r"[a-z]+:|#", address):
            return match[0]
        path, _, anchor = address.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target in targets:
            return f"{image}[{label}]({targets[target]}{'#' + anchor if anchor else ''})"
        return label if "`" in label else f"`{label}`"

    return _LINK.sub(link, text)


def config_keys() -> Iterator[str]:
    """The keys of config.py with defaults and comments, in the order of the file."""
    yield "# Config keys"
    yield ""
    yield "The keys that this project adds to Detectron2's, with their defaults."
    yield ""
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    comment: list[str] = []
    for line in (ROOT / PACKAGE / "config.py").read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        if match := _KEY.match(line):
            key, value = match.groups()
            text = " ".join(comment).replace("|", "\\|")
            if value == "CfgNode()":
                yield f"| **{key}** | | {text} |"
            else:
                yield f"| `{key}` | `{value.partition('  #')[0]}` | {text} |".replace("\\|`", "|`")
        comment = []


def module_names() -> Iterator[str]:
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts)


def api_page(module: str) -> str:
    return f"api/{module}.md"


main()
