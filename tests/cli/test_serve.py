from __future__ import annotations

import socket

import pytest

from glipv2_cli import serve
from glipv2_cli.main import main


def test_an_occupied_port_is_an_error_before_the_model_is_loaded(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()  # codespell:ignore listen
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "no-such-model"]) == 2
    assert f"--port {port} cannot be used (Address already in use)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [("127.0.0.1", 70000, "ports are from 0 to 65535"), ("203.0.113.1", 0, "cannot be used")],
)
def test_an_address_that_cannot_be_used_is_an_error(host, port, message):
    with pytest.raises(ValueError, match=message):
        serve.bind(host, port)


def test_a_port_is_taken_from_the_start():
    sock = serve.bind("127.0.0.1", 0)
    with pytest.raises(ValueError, match="choose another port"):
        serve.bind("127.0.0.1", sock.getsockname()[1])
    sock.close()


def test_the_token_of_label_studio_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
    assert serve.label_studio(None) is None
    found = serve.label_studio("http://127.0.0.1:8080")
    assert (found.url, found.token) == ("http://127.0.0.1:8080", "secret")
