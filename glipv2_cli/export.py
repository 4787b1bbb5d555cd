"""Export a model for other runtimes: ONNX (any class names), or TorchScript (fixed class names).

Only boxes are exported, for images of one size. The folder of --format onnx has two graphs, the
tokenizer, the settings and detect.py, which runs them without torch:
  python exported/detect.py photo.jpg "cat, coffee cup"

Examples:
  glipv2 export --size 416x416 --output exported
  glipv2 export --model glip-t --size 800x1333 --output glip_t_onnx
  glipv2 export --format torchscript --classes "cat, coffee cup" --size 320x416 --output traced

exit codes:
  0  the folder was written, and ONNX graphs are equal to the model on another image and other words
  2  the command failed, and no folder was written: the last line has the reason
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from glipv2_cli.arguments import add_log_argument, add_model_arguments


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--format", choices=("onnx", "torchscript"), default="onnx", help="default: %(default)s")
    add("--output", type=Path, required=True, metavar="DIR", help="folder, which must not exist")
    add(
        "--size",
        metavar="HEIGHTxWIDTH",
        help="of images in pixels; ONNX: photos are resized to fit in it (default: the size of the "
        "config's tests, in landscape)",
    )
    add(
        "--classes",
        metavar="NAMES",
        help='of TorchScript: "cat, coffee cup" (default: those of a fine-tuned model)',
    )
    add_log_argument(parser, "export")
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.format != "torchscript" and args.classes is not None:
        raise ValueError(
            "--classes is for --format torchscript: ONNX takes class names at run time"
        )
    from glipv2_cli.arguments import build_predictor, log_to_file, model_name, names_of_model
    from glipv2_d2.command_line import parse_class_names
    from glipv2_d2.export.folder import check_absent, size_of
    from glipv2_d2.export.models import parse_size, parts_left_out

    check_absent(args.output)
    size = None if args.size is None else parse_size(args.size)
    if args.device is None:
        args.device = "cpu"
    names: list[str] | None = None
    if args.format == "torchscript":
        names = parse_class_names(args.classes) if args.classes else names_of_model(args)
        if names is None:
            raise ValueError("--format torchscript needs --classes, as its class names are fixed")
    name = model_name(args)
    with log_to_file(args.log, option="--log"):
        predictor = build_predictor(args)
        if names is None:
            from glipv2_d2.export.onnx_export import export_onnx

            export_onnx(predictor, args.output, size=size, name=name)
        else:
            from glipv2_d2.export.torchscript_export import export_torchscript

            export_torchscript(predictor, args.output, names, size=size, name=name)
    if left_out := parts_left_out(predictor.model):
        print(f"Only boxes are exported; not exported: {', '.join(left_out)}")
    print(f"Wrote {args.output.resolve()} ({size_of(args.output) / 2**20:.1f} MiB)")
    return 0
