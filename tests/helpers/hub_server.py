"""A local server with the paths of the Hugging Face hub, and huggingface_hub set up for it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = {"main": "0" * 40, "v2": "2" * 40}


class Hub:
    """Repositories of files: name -> revision -> file -> bytes; and what was requested."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.url = ""

    def add(self, repository: str, file: str, content: bytes, revision: str = "main") -> None:
        self.repositories.setdefault(repository, {}).setdefault(revision, {})[file] = content


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a class
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def reply_json(self, content: Any) -> None:
            self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            files = hub.repositories.get(match[1]) if match else None
            if match is None or files is None:
                return self.reply(404, X_Error_Code="RepoNotFound")
            names = {commit: revision for revision, commit in COMMIT.items()}
            revision = names.get(match[2], match[2])
            if revision not in files:
                return self.reply(404, X_Error_Code="RevisionNotFound")
            if match[3] not in files[revision]:
                return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT[revision])
            content = files[revision][match[3]]
            return self.reply(
                200,
                content,
                ETag=f'"{hashlib.sha1(content).hexdigest()}"',
                X_Repo_Commit=COMMIT[revision],
                Content_Length=str(len(content)),
            )

        def do_POST(self) -> None:
            hub.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                name = "user/" + json.loads(body)["name"]
                hub.repositories.setdefault(name, {"main": {}})
                return self.reply_json({"url": f"{hub.url}/{name}", "id": name})
            if self.path == "/api/validate-yaml":
                return self.reply_json({"errors": [], "warnings": []})
            match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
            assert match, self.path
            if match[2] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.reply_json({"files": files})
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    hub.add(match[1], entry["value"]["path"], content)
            url = f"{hub.url}/{match[1]}/commit/{COMMIT['main']}"
            return self.reply_json({"commitUrl": url, "commitOid": COMMIT["main"]})

    return Handler


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_hub(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE=0 set, which are read at import."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(time, "sleep", lambda _seconds: None)  # between attempts
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
