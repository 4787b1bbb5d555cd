"""Serve a model over HTTP.

Example:
  glipv2 serve
  curl -F image=@photo.jpg -F classes=cat -F classes=dog http://127.0.0.1:8000/predict

Routes: /predict, /answer, /caption, /health, /metrics (for Prometheus), and /docs, which describes
all of them. Waiting requests are run in batches. With --label-studio-url, the service is also an ML
backend of Label Studio: http://HOST:PORT/label-studio. Ctrl-C or SIGTERM finishes the requests that
wait, and stops.

There is no authentication: keep the default address, which only this machine reaches, or put a
proxy with authentication before it.

exit codes:
  0    stopped by Ctrl-C or SIGTERM
  2    the command failed: the last line has the reason
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glipv2_cli.arguments import (
    add_model_arguments,
    build_predictor,
    check_threshold,
    model_name,
)

if TYPE_CHECKING:
    from glipv2_d2.serving.label_studio import LabelStudio

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"
# Seconds that requests have to end after Ctrl-C.
STOP_TIMEOUT = 60


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glipv2 serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--host", default="127.0.0.1", help=f"address to bind {default}")
    add("--port", type=int, default=8000, help=f"{default}; 0: any free one")
    add(
        "--threshold",
        type=float,
        metavar="T",
        help="minimum score of a box where a request has none (default: the model's)",
    )
    add("--max-batch-size", type=int, default=8, metavar="N", help=f"requests per pass {default}")
    add("--max-waiting", type=int, default=64, metavar="N", help=f"others get 429 {default}")
    add("--max-megabytes", type=int, default=20, metavar="N", help=f"per request {default}")
    add("--max-megapixels", type=int, default=40, metavar="N", help=f"per image {default}")
    add(
        "--label-studio-url",
        metavar="URL",
        help=f"be an ML backend of this Label Studio; the variable {TOKEN_VARIABLE} has the token "
        "of a user",
    )
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    args = get_parser().parse_args(argv)
    check_threshold(args.threshold)
    sock = bind(args.host, args.port)
    import uvicorn

    from glipv2_d2.serving.app import create_app
    from glipv2_d2.serving.limits import MEGA, Limits

    limits = Limits(
        max_bytes=args.max_megabytes * MEGA,
        max_pixels=args.max_megapixels * MEGA,
        max_batch_size=args.max_batch_size,
        max_waiting=args.max_waiting,
    )
    app = create_app(
        build_predictor(args),
        model=model_name(args),
        threshold=args.threshold,
        limits=limits,
        label_studio=label_studio(args.label_studio_url),
    )
    host, port = sock.getsockname()[:2]
    address = f"http://{host}:{port}"
    print(f"serving {model_name(args)} at {address} (routes: /docs); Ctrl-C stops it", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOP_TIMEOUT)
    uvicorn.Server(config).run(sockets=[sock])
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, before the model is loaded.

    Raises:
        ValueError: the address is in use or not of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; ports are from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()  # codespell:ignore listen
    except OSError as error:
        sock.close()
        raise ValueError(
            f"--host {host} --port {port} cannot be used ({error.strerror or error}): "
            "choose another port"
        ) from error
    return sock


def label_studio(url: str | None) -> LabelStudio | None:
    if url is None:
        return None
    from glipv2_d2.serving.label_studio import LabelStudio

    return LabelStudio(url, os.environ.get(TOKEN_VARIABLE))
