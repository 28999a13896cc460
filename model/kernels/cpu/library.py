"""The shared library made of the C++ sources in this folder: compiled, cached and loaded.

The machine's C++ compiler builds it when it is first needed, which takes seconds. It is kept in the user's
cache, one file per version of the sources, compiler command, C library and processor. The allocator of the C
library is set here too.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

_SOURCES = [
    Path(__file__).with_name(name)
    for name in ("kernels.cpp", "block.h", "cross_entropy.h", "products.h", "attention.h", "tiles.h")
]
_FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-std=c++17", "-shared", "-fPIC"]
_HALF = "-DHALF_VECTORS"  # AVX-512 takes a head of 16 channels in vectors of AVX2
SMALLEST_TILE = 16  # COLUMNS of tiles.h with the vectors of AVX2
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def load(*channels: int) -> ctypes.CDLL | None:
    """Return the library of the widest tiles that divide all `channels`, compiled first if need be.

    Returns None, with a warning, where that fails.
    """
    outcome = _attempt()
    if isinstance(outcome, ctypes.CDLL) and any(size % outcome.columns() for size in channels):
        outcome = _attempt(half=True)
    if isinstance(outcome, str):
        _warn(outcome)
        return None
    return outcome


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"without the kernels of model/kernels/cpu a step on the CPU takes half as long again: {reason}",
        stacklevel=3,
    )


def failure() -> str | None:
    """Return why the library cannot be compiled or loaded, None if it can."""
    outcome = _attempt()
    return outcome if isinstance(outcome, str) else None


@cache
def _attempt(*, half: bool = False) -> ctypes.CDLL | str:
    try:
        library = ctypes.CDLL(str(_compiled(half=half)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return next((line for line in said if "error" in line), said[-1])
    library.columns.restype = library.kept_floats.restype = ctypes.c_int64
    for name in ("block_forward", "block_backward", "loops_forward", "cross_entropy"):
        getattr(library, name).restype = ctypes.c_bool
    return library


@cache
def columns() -> int:
    """Return the number of channels of which heads and widths must be multiples; 0 without the library."""
    return 0 if load() is None else SMALLEST_TILE


def takes_channels(channels: int) -> bool:
    """Return True if the kernels take a head, a width or a vocabulary of this size.

    `compile_blocks` has the answer taken as a constant of the graphs.
    """
    return columns() > 0 and channels % columns() == 0


@cache
def largest_width() -> int:
    """Return the largest width at which a block in C++ is faster than one of the BLAS library's products.

    Wider weights do not stay in a core's caches. MKL, at home on Intel's processors, is ahead earlier there.
    """
    return 256 if "GenuineIntel" in _cpuinfo() else 512


@cache
def _cpuinfo() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""


def _compiled(*, half: bool = False) -> Path:
    """Return the path of the compiled library, with `half` that of the narrower vectors."""
    command = [*shlex.split(os.environ.get("CXX", "g++")), *_FLAGS, *([_HALF] if half else [])]
    features = {line for line in _cpuinfo().splitlines() if line.startswith(("flags", "Features"))}
    sources = [source.read_text(encoding="utf-8") for source in _SOURCES]
    parts = [*sources, *command, platform.machine(), *platform.libc_ver(), *sorted(features)]
    name = f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    folder = _private(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopscale")
    if (folder / name).exists() and not _is_ours(folder / name):
        (folder / name).unlink()
    if not (folder / name).exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            command += [str(_SOURCES[0]), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.chmod(0o700)
            with made.open("rb") as whole:
                os.fsync(whole.fileno())
            with contextlib.suppress(FileExistsError):
                (folder / name).hardlink_to(made)  # of several processes the first one's stays: it is in use
    return folder / name


def _private(folder: Path) -> Path:
    """Return `folder`, made if need be, where others can write nothing; a temporary one if it is another's.

    What is loaded from there runs as this user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        temporary = Path(tempfile.mkdtemp(prefix="loopscale-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return temporary
    folder.chmod(0o700)
    return folder


def _is_ours(path: Path) -> bool:
    """Return True for a regular file of this user that no other may write."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def keep_freed_memory() -> None:
    """Keep freed memory in the process: a step would fault pages that were returned to the system in anew.

    Affects the whole process, where the C library is glibc. Peak memory stays about the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
