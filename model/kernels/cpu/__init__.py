"""The CPU's kernels for float32, in C++: loaded here, called by the modules beside this one.

The machine's C++ compiler makes them when they are first needed, in seconds; they are kept in the user's
cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

_SOURCES = [
    Path(__file__).with_name(name)
    for name in ("kernels.cpp", "block.h", "cross_entropy.h", "products.h", "attention.h", "tiles.h")
]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-std=c++17", "-shared", "-fPIC"]


@cache
def kernels() -> ctypes.CDLL | None:
    """Load the kernels, compiled first where they are not; None, with a warning, where that is impossible."""
    try:
        library = ctypes.CDLL(str(_compiled()))
        library.columns.restype = library.kept_floats.restype = ctypes.c_int64
        for name in ("block_forward", "block_backward", "loops_forward", "cross_entropy"):
            getattr(library, name).restype = ctypes.c_bool
        return library
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = next((line for line in said if "error" in line), said[-1])
        warnings.warn(
            f"without the kernels of model/kernels/cpu a step on the CPU takes half as long again: {reason}",
            stacklevel=2,
        )
        return None


@cache
def columns() -> int:
    """Give the number of channels of which heads and widths must be multiples; 0 without the kernels."""
    library = kernels()
    return 0 if library is None else int(library.columns())


@cache
def largest_width() -> int:
    """Give the largest width at which a block of our own is faster than one of the BLAS library's products.

    Wider weights do not stay in a core's caches. MKL, at home on Intel's processors, is ahead earlier there.
    """
    return 256 if "GenuineIntel" in _cpuinfo() else 512


@cache
def _cpuinfo() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


def keep_freed_memory() -> None:
    """Let the C library keep what is freed: pages that go back to the system are fetched anew by every step.

    Affects the whole process, where the C library is glibc. Peak memory stays about the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _compiled() -> Path:
    """Return the compiled kernels; one file for every source, C library and kind of processor."""
    command = [*shlex.split(os.environ.get("CXX", "g++")), *_FLAGS]
    features = {line for line in _cpuinfo().splitlines() if line.startswith(("flags", "Features"))}
    sources = [source.read_text() for source in _SOURCES]
    parts = [*sources, *command, platform.machine(), *platform.libc_ver(), *sorted(features)]
    name = f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopscale"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            command += [str(_SOURCES[0]), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            with made.open() as whole:
                os.fsync(whole.fileno())
            with contextlib.suppress(FileExistsError):
                (folder / name).hardlink_to(made)  # of several processes the first one's stays: it is in use
    return folder / name
