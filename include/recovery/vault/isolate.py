"""A program, not a module: shut this process into a directory, then become another program.

    python -I -S isolate.py ROOT PROGRAM [ARGUMENT...]

It is run in a network namespace of its own, where loopback is switched off: it switches it on (iproute2, which could,
is not everywhere). ROOT becomes the root directory, so that whatever path PROGRAM is told to write to lies below it; as
/ it changes nothing. PROGRAM is opened before: within ROOT there is neither it nor a library, so it must be static.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

# <linux/sockios.h> and <linux/if.h>: a struct ifreq is 16 bytes of name and a union of 24, here the flags.
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("16sh22x")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def become(root: str, *command: str) -> None:
    """Does not return; raises OSError."""
    program = os.open(command[0], os.O_RDONLY | os.O_CLOEXEC)
    if root != "/":
        os.chroot(root)
        os.chdir("/")
    os.execve(program, command, dict(os.environ))


if __name__ == "__main__":
    loopback_up()
    try:
        become(*sys.argv[1:])
    except FileNotFoundError:
        sys.exit(f"Error: {sys.argv[2]} is a script or needs libraries: name the program itself as vault.NAME.binary")
    except OSError as problem:
        sys.exit(f"Error: {sys.argv[2]} cannot be run: {problem.strerror}")
