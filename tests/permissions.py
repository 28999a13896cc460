"""Permissions that hold for root too, who runs tests in containers and may otherwise do anything."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

VERSION_3 = 0x20080522  # of the kernel's capability structures
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
SETS = ctypes.c_uint32 * 6  # effective, permitted and inheritable, for capabilities 0 to 31 and 32 to 63


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Let the permissions of files hold for this thread; others keep what root may do."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before, after = (ctypes.c_uint32 * 2)(VERSION_3, 0), SETS(), SETS()
    for capabilities in (before, after):
        assert libc.capget(header, capabilities) == 0
    after[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, after) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
