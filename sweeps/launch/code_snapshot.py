"""The code that a sweep's jobs run: a snapshot of the checkout, so that editing it changes no queued run."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.run.record import VERSION
from harness.storage.files import read_json, write_json, write_text

CHECKOUT = Path(__file__).resolve().parents[2]
CODE = "code"  # folder of the snapshots inside a sweep's
SOURCES = ("model", "harness", "sweeps", "analysis", "conf", "loopscale.py")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of the code. `path` is relative to the sweep's folder."""

    path: str
    version: str  # as code_version says it in the runs table
    commit: str  # "" outside a git checkout
    dirty: bool


def take_snapshot(sweep: Path, checkout: Path = CHECKOUT, *, write: bool = True) -> Snapshot:
    """Copy the code into `<sweep>/code/<digest>` unless it is there, and return where.

    In a git checkout: what is committed of the rooms, through git archive, with the edits of tracked files
    and the files that git does not know yet but does not ignore; the whole difference to the commit lies
    beside it as changes.diff. Elsewhere the rooms are copied as they are. Nothing is refused. `write=False`
    only names it.
    """
    own = checkout / "snapshot.json"
    if own.exists() and checkout.parent == (sweep / CODE).resolve():  # a job of the sweep launches
        return Snapshot(**read_json(own))
    commit = _git(checkout, "rev-parse", "HEAD").decode().strip()
    # Only when the checkout is the repository itself, not a folder inside of somebody else's.
    if not commit or Path(_git(checkout, "rev-parse", "--show-toplevel").decode().strip()) != checkout:
        return _copied(sweep, checkout, write)
    changes = _git(checkout, "diff", "--binary", "HEAD")
    untracked = [
        name
        for name in _names(checkout, "ls-files", "-z", "--others", "--exclude-standard")
        if name.split("/")[0] in SOURCES
    ]
    digest = hashlib.sha256(commit.encode() + changes)
    for name in untracked:
        digest.update(name.encode() + (checkout / name).read_bytes())
    dirty = bool(changes or untracked)
    snapshot = Snapshot(
        path=f"{CODE}/{digest.hexdigest()[:10]}",
        version=f"{VERSION}+{commit[:7]}{'-dirty' if dirty else ''}",
        commit=commit,
        dirty=dirty,
    )
    target = sweep / snapshot.path
    if write and not target.exists():
        scratch = _scratch(target)
        rooms = [name for name in _names(checkout, "ls-tree", "-z", "--name-only", commit) if name in SOURCES]
        tar = _git(checkout, "archive", "--format=tar", commit, "--", *rooms)
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            archive.extractall(scratch, filter="data")
        edited = _names(checkout, "diff", "--name-only", "-z", "HEAD")
        for name in [*(name for name in edited if name.split("/")[0] in SOURCES), *untracked]:
            (scratch / name).unlink(missing_ok=True)
            if (checkout / name).exists():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(checkout / name, scratch / name)
        (scratch / "changes.diff").write_bytes(changes)
        _publish(scratch, target, snapshot)
    return snapshot


def record_environment(folder: Path) -> None:
    """Write the interpreter, the machine and every installed package beside an array."""
    shown = (
        "CUDA_VISIBLE_DEVICES",
        "CONDA_DEFAULT_ENV",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PATH",
    )
    environment = {
        "command": sys.argv,
        "python": sys.version,
        "executable": sys.executable,
        "host": platform.node(),
        "platform": platform.platform(),
        "environment": {name: os.environ[name] for name in shown if name in os.environ},
        "packages": installed_packages(),
    }
    write_json(folder / "environment.json", environment)


def installed_packages() -> dict[str, str]:
    """Return the version of every installed package, read off folder names: parsing them takes a second."""
    folders = [Path(entry) for entry in sys.path if Path(entry).is_dir()]
    names = [path.stem for folder in folders for path in folder.glob("*.dist-info")]
    return {name: version for name, _, version in (name.rpartition("-") for name in sorted(names))}


def _copied(sweep: Path, checkout: Path, write: bool) -> Snapshot:
    files = sorted(
        path
        for name in SOURCES
        for path in [checkout / name, *(checkout / name).rglob("*")]
        if path.is_file() and path.suffix != ".pyc"
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(checkout)).encode() + path.read_bytes())
    snapshot = Snapshot(path=f"{CODE}/{digest.hexdigest()[:10]}", version=VERSION, commit="", dirty=False)
    target = sweep / snapshot.path
    if write and not target.exists():
        scratch = _scratch(target)
        for path in files:
            copy = scratch / path.relative_to(checkout)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        _publish(scratch, target, snapshot)
    return snapshot


def _scratch(target: Path) -> Path:
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    return scratch


def _publish(scratch: Path, target: Path, snapshot: Snapshot) -> None:
    write_json(scratch / "snapshot.json", asdict(snapshot))
    write_text(
        scratch / "README", "The code that this sweep's jobs run; changes.diff is what was not committed.\n"
    )
    scratch.rename(target)


def _names(checkout: Path, *arguments: str) -> list[str]:
    return [name for name in _git(checkout, *arguments).decode().split("\0") if name]


def _git(checkout: Path, *arguments: str) -> bytes:
    """Return what git prints, nothing where there is no git or no repository."""
    command = ["git", "-c", "core.quotepath=off", *arguments]
    try:
        return subprocess.run(command, cwd=checkout, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""
