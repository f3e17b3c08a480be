"""The stack on which a thread takes signals, kept from a library that leaves a freed one behind."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DISABLE = 2  # SS_DISABLE: signals come on the thread's own stack


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2), as Linux lays it out."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the calling thread its alternate signal stack back after the block; does nothing but on Linux.

    For blocks in which OpenVINO may load its CPU plugin. The plugin gives the thread a stack, and frees it when it
    is dropped: by another thread, or before a plugin loaded later, the first thread is left with freed memory.
    Python takes its signals on that stack, so that the next Ctrl-C would be a crash.
    """
    if sys.platform != "linux":
        yield
        return
    # A library of its own: nobody else's argument types.
    call = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    if call(None, ctypes.byref(before)) != 0:
        yield
        return
    try:
        yield
    finally:
        _put_back(call, before)


def _put_back(call: Any, before: _Stack) -> None:
    """The stack of before, or none where the kernel now wants a larger one (the CPU's tiles were asked for)."""
    if call(ctypes.byref(before), None) != 0:
        call(ctypes.byref(_Stack(flags=_DISABLE)), None)
