"""Keeps freed part buffers from staying with the process: bounded memory must also look bounded to the kernel."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_THRESHOLD_BYTES = 4 << 20


def give_back_large_buffers() -> None:
    """Let glibc map buffers of 4 MiB and more by themselves, so that freeing one returns it at once (mallopt(3)).

    By default glibc raises that threshold to the largest buffer it has seen freed, and then every thread's arena keeps
    the parts that passed through it. Other C libraries have no mallopt() and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
