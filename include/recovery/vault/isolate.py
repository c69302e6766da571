"""A program, not a module: bring loopback up in a new network namespace, then become another program.

    python -I -S isolate.py PROGRAM [ARGUMENT...]

A new namespace has loopback, switched off. Switching it on needs no tool this way (iproute2 is not everywhere).
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


if __name__ == "__main__":
    loopback_up()
    os.execv(sys.argv[1], sys.argv[1:])
