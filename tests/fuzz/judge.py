"""Run one command on hostile input in a process of its own, and judge how it ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_SECONDS, MOST_WAIT_S, MOST_BYTES = 20.0, 100.0, 2 << 30
SUCCESS, REFUSED = "success", "refused"
# Programs that loopscale asks about the machine and its own checkout.
HARMLESS = {"git", "uname", "lscpu", "nvidia-smi", "g++", "c++", "cc", "gcc", "ldconfig", "/sbin/ldconfig"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of changed files, and how many of their first arguments are paths.
CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.chown"), 1),
    **dict.fromkeys(("os.rename", "os.symlink", "os.link"), 2),
}
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a command ended: "success", "refused" (one line) or what is wrong; its output and CPU time."""

    outcome: str
    message: str
    seconds: float
    gigabytes: float


def judged(command: Sequence[str], folder: Path, named: Sequence[str]) -> Verdict:
    """Run `loopscale COMMAND` inside `folder` and return how it ended.

    Parameters
    ----------
    named : texts of which a refusal must hold one: the file's name, its folder's, or the setting.
    """
    out, broken = folder / ".output", folder / ".broken"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(command, folder, out, broken)
    status, usage = _wait(child)
    size = usage.ru_maxrss * 1024
    # On a busy machine the clock runs on while others compute; what waits for ever does not compute.
    waited = time.monotonic() - began > MOST_WAIT_S
    seconds = MOST_WAIT_S if waited else usage.ru_utime + usage.ru_stime
    text = out.read_text(errors="replace") if out.exists() else ""
    outcome = _outcome(status, seconds, size, text, named)
    if broken.exists():
        outcome, text = "broke out", broken.read_text(errors="replace")
    elif list(folder.rglob("executed")):
        outcome = "executed"
    return Verdict(outcome=outcome, message=text[-1500:], seconds=seconds, gigabytes=size / 1e9)


def _outcome(status: int, seconds: float, size: int, text: str, named: Sequence[str]) -> str:
    if seconds > MOST_SECONDS:
        return "hangs"
    if size > MOST_BYTES:
        return "takes memory"
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    if code == 0:
        return SUCCESS
    lines = [line for line in text.splitlines() if line.startswith("loopscale: ")]
    if code != 2 or len(lines) != 1 or "Traceback" in text:
        return "traceback"
    return REFUSED if any(name in lines[0] for name in named) else "unnamed"


def _wait(child: int) -> tuple[int, Any]:
    ends = time.monotonic() + MOST_WAIT_S
    while time.monotonic() < ends:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _child(command: Sequence[str], folder: Path, out: Path, broken: Path) -> None:
    code = 1
    try:
        os.setsid()
        output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        os.environ |= {"TMPDIR": str(folder), "MPLCONFIGDIR": str(folder)}
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        tempfile.tempdir = None
        space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (space + 4 * MOST_BYTES, space + 4 * MOST_BYTES))
        reports = os.open(broken.parent, os.O_RDONLY)
        sys.addaudithook(_hook(str(folder), reports, broken.name))
        from tests.permissions import permissions_hold

        with permissions_hold():
            code = _ended(command)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _ended(command: Sequence[str]) -> int:
    import loopscale

    try:
        loopscale.main(list(command))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 0


def _hook(folder: str, reports: int, name: str) -> Any:
    """Return an audit hook that notes each write outside `folder` and each program that is started."""

    def note(text: str) -> None:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, dir_fd=reports)
        os.write(handle, text.encode("utf-8", "replace") + b"\n")
        os.close(handle)

    noting = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if noting:
            return
        noting.append(event)
        try:
            for path in _changed_paths(event, arguments):
                if not _inside(path, folder):
                    note(f"{event} {path}")
            if event in STARTS and Path(str(arguments[0])).name not in HARMLESS:
                note(f"{event} {arguments[:2]}")
        finally:
            noting.clear()

    return hook


def _changed_paths(event: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & WRITES:
            yield os.fsdecode(path)
    for path in arguments[: CHANGES.get(event, 0)]:
        if isinstance(path, str | bytes | os.PathLike):
            yield os.fsdecode(path)


def _inside(path: str, folder: str) -> bool:
    whole = os.path.realpath(os.path.dirname(path) or ".")  # noqa: PTH120
    allowed = (folder, "/dev/shm", str(Path.home() / ".cache"))
    return path in ("/dev/null", "/dev/tty") or whole.startswith(allowed)


def imported_ahead() -> None:
    """Import what commands use, so that the processes forked for them need not; starts no thread."""
    import datasets  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.optimize  # noqa: F401
    import tokenizers  # noqa: F401

    import sweeps.cli.evaluate
    import sweeps.cli.fitting
    import sweeps.cli.launching
    import sweeps.cli.models
    import sweeps.cli.training
    import sweeps.launch.launch
    import sweeps.planning.plan  # noqa: F401
    from sweeps.config.compose import compose_study, compose_table

    compose_study([])  # which imports Hydra, and what checks a configuration
    compose_table("status", ["sweep=tiny"])
