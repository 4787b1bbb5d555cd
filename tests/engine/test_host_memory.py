from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from glipv2_d2.engine import host_memory

# In a child process, because the setting is permanent. Only the file is imported: it needs no
# package.
CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("host_memory", sys.argv[1])
host_memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(host_memory)

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

if sys.argv[2] == "keep":
    assert host_memory.keep_freed_memory()
block = bytearray(64 * 2**20)
block[::4096] = b"x" * len(block[::4096])
with_block = resident_mib()
del block
print(with_block - resident_mib())
"""


@pytest.mark.parametrize(("mode", "is_returned"), [("keep", False), ("default", True)])
def test_the_process_keeps_freed_blocks_only_after_the_call(mode: str, is_returned: bool) -> None:
    command = [sys.executable, "-c", CHILD, host_memory.__file__, mode]
    returned_mib = float(subprocess.check_output(command))
    assert (returned_mib > 32) == is_returned


def test_other_c_libraries_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not host_memory.keep_freed_memory()


def test_the_peak_is_at_least_the_resident_memory() -> None:
    before = host_memory.peak_resident_bytes()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    assert resident * 0.9 < before < 2**42
