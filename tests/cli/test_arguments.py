"""What subcommands share."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from glipv2_cli.arguments import log_to_file


def test_the_terminal_shows_a_warning_once_and_the_log_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("glipv2_d2.example")
    with log_to_file(tmp_path) as log:
        for number in (1, 2, 1):
            logger.warning("%d parts are missing", number)
        logger.info("for the log")
    printed = capsys.readouterr().err
    assert printed == "WARNING: 1 parts are missing\nWARNING: 2 parts are missing\n"
    written = log.read_text()
    assert written.count("1 parts are missing") == 2 and "for the log" in written
