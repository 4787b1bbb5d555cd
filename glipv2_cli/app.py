"""Try a model on a web page.

Example:
  glipv2 app --open

Choose an image, type class names, a caption or a question, or have the image described. The page
shows the boxes and masks, the answer or caption, and a JSON file to download. The examples need
scikit-image (of the extra "mini").

There is no authentication: keep the default address, which only this machine reaches.

exit codes:
  0    stopped by Ctrl-C
  2    the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

from glipv2_cli.arguments import (
    add_model_arguments,
    build_predictor,
    check_threshold,
    model_name,
)
from glipv2_cli.serve import bind

# File of scikit-image -> task and prompt.
EXAMPLES = {
    "coffee.png": ("Class names", "cup, spoon, dog"),
    "chelsea.png": ("Question", "what animal is this?"),
    "motorcycle_left.png": ("Caption", "a motorcycle beside a wall"),
    "astronaut.png": ("Describe", ""),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glipv2 app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--host", default="127.0.0.1", help=f"address to bind {default}")
    add("--port", type=int, default=7860, help=default)
    add("--threshold", type=float, help="initial minimum score of a box (default: the model's)")
    add("--max-megabytes", type=int, default=20, metavar="N", help=f"of an upload {default}")
    add("--open", action="store_true", help="open the page in a browser")
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    args = get_parser().parse_args(argv)
    check_threshold(args.threshold)
    # Gradio binds the port itself, after the model is loaded.
    bind(args.host, args.port).close()
    from glipv2_d2.serving.page import build_page

    with tempfile.TemporaryDirectory(prefix="glipv2_app_") as folder:
        predictor = build_predictor(args)
        page = build_page(
            predictor,
            model=model_name(args),
            threshold=predictor.threshold if args.threshold is None else args.threshold,
            folder=Path(folder),
            examples=examples(),
        )
        print(f"the page of {model_name(args)}: http://{args.host}:{args.port}", flush=True)
        page.queue(default_concurrency_limit=1).launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=args.max_megabytes * 1_000_000,
            allowed_paths=[folder],
            inbrowser=args.open,
            quiet=True,
            share=False,
            footer_links=["api"],
        )
    return 0


def examples() -> list[tuple[str, str, str]]:
    """The photos of scikit-image with a task and a prompt; none if it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return [
        (str(folder / name), task, prompt)
        for name, (task, prompt) in EXAMPLES.items()
        if (folder / name).is_file()
    ]
