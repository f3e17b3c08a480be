"""A Ctrl-C after engines were closed in any order, by any thread, is a KeyboardInterrupt and no crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_onnx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stack is a matter of Linux")

_IN_ORDER = "second = open_openvino(path); first.close(); del first; second.close(); del second"
_BY_A_THREAD = """
held = [first]
del first
def exchange():
    second = open_openvino(path)
    held.pop().close()
    held.append(second)
thread = threading.Thread(target=exchange)
thread.start()
thread.join()
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: were it to crash, it would take this one with it."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("between", [_IN_ORDER, _BY_A_THREAD], ids=["in order", "by a thread"])
def test_ctrl_c_after_openvino_engines_were_closed(tmp_path: Path, between: str) -> None:
    pytest.importorskip("openvino")
    code = f"""
import gc, os, signal, sys, threading
from pathlib import Path
from ufr_edge.runtime.engines.openvino_engine import open_openvino
path = Path(sys.argv[1])
first = open_openvino(path, threads=1)
{between}
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("stopped")
"""
    done = run(code, str(write_tiny_onnx(tmp_path / "tiny.onnx")))
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


def test_the_stack_is_put_back_though_the_block_raises() -> None:
    code = """
import faulthandler
from ufr_edge.runtime import signal_stack
from ufr_edge.runtime.signal_stack import kept_signal_stack
import ctypes
call = ctypes.CDLL(None).sigaltstack
def stack():
    found = signal_stack._Stack()
    assert call(None, ctypes.byref(found)) == 0
    return found.sp, found.flags, found.size
none = stack()
try:
    with kept_signal_stack():
        faulthandler.enable()
        some = stack()
        raise ValueError
except ValueError:
    print(none != some, stack() == none)
"""
    done = run(code)
    assert done.stdout == "True True\n", done.stderr
