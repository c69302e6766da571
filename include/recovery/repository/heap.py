"""Keeps the memory of passing buffers small and warm: bounded memory must also look bounded to the kernel."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ONE_BUFFER = 32 << 20
_KEPT = 64 << 20


def share_one_heap() -> None:
    """Let all threads take their buffers from one heap, where a freed one is the next one's memory (mallopt(3)).

    By default glibc gives each thread an arena of its own, and every arena keeps the parts that passed through it;
    or it maps each large buffer anew, and the kernel clears every page of it. Other C libraries have no mallopt()
    and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _ONE_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
