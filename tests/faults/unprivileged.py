"""Runs a module as `python -m` does, without root's right to write what nobody may write.

`python -m tests.faults.unprivileged api serve ...`: to a process of root the permissions of a file mean
nothing until it has given up the capabilities that pass over them; see capabilities(7). Giving them up needs
no privilege, and without any there is nothing to give up, so the permissions count in either case.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import struct
import sys

# linux/capability.h: version 3 has two words of 32 capabilities each, of the calling thread, which is
# the only one by now.
_VERSION = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH, _FOWNER = 1, 2, 3
_DROPPED = 1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH | 1 << _FOWNER


def obey_permissions() -> None:
    """Drop what lets a process of root pass over the permissions of files; OSError if it cannot be done."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("Ii", _VERSION, 0))
    sets = ctypes.create_string_buffer(24)
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capget")
    effective, permitted, inheritable, *high = struct.unpack("6I", sets.raw[:24])
    kept = [each & ~_DROPPED for each in (effective, permitted, inheritable)]
    if libc.capset(header, struct.pack("6I", *kept, *high)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capset")


if __name__ == "__main__":
    obey_permissions()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
