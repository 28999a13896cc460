"""Python source files of installed packages and of the standard library."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.data.dataset import DataError

STDLIB = "stdlib"
# Tests, and packages that distributions of Python patch or ship separately.
STDLIB_FOLDERS_LEFT_OUT = frozenset(
    [
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "idle_test",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
        "distutils",
        "lib-dynload",
    ]
)
# Written when a package or Python is built, with a version, host, compiler or paths. Data made from the same
# lock file must be the same on every machine. sitecustomize belongs to the distribution.
BUILD_DEPENDENT = re.compile(
    r"(_|__|_generated_)?version(__|_meson)?|__config__|_?build_config|_sysconfigdata.*|sitecustomize"
)


def python_files(package: str, left_out: Counter[str] | None = None) -> Iterator[tuple[str, Path]]:
    """Yield (relative POSIX path, file) of a package's sources in sorted order, without importing it.

    Raises DataError when the package is not installed.
    """
    folder, module = _locate(package)
    if module is not None:
        yield module.name, module
        return
    assert folder is not None
    paths = []
    for place, folders, files in os.walk(folder):
        if package == STDLIB:
            folders[:] = [
                f for f in folders if f not in STDLIB_FOLDERS_LEFT_OUT and not f.startswith("config-")
            ]
        paths += [Path(place, file) for file in files if file.endswith(".py")]
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        if BUILD_DEPENDENT.fullmatch(path.stem):
            if left_out is not None:
                left_out["build-dependent"] += 1
            continue
        yield path.relative_to(folder).as_posix(), path


def package_fingerprint(package: str) -> Any:
    """Return the version of a package or, without one, sizes and times of its files."""
    if package == STDLIB:
        return platform.python_version()
    folder, module = _locate(package)
    place = module or folder
    assert place is not None
    try:
        distribution = importlib.metadata.distribution(package)
        if Path(str(distribution.locate_file(place.name))) == place:
            return distribution.version
    except importlib.metadata.PackageNotFoundError:
        pass
    stats = [(name, path.stat()) for name, path in python_files(package)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def package_versions(packages: list[str]) -> dict[str, str | None]:
    """Return the version of the distribution that provides each package, None if there is none."""
    distributions = importlib.metadata.packages_distributions()
    versions: dict[str, str | None] = {}
    for package in sorted(packages):
        provider = next(iter(distributions.get(package, [])), None)
        versions[package] = importlib.metadata.version(provider) if provider else None
    return versions | ({STDLIB: platform.python_version()} if STDLIB in packages else {})


def package_folder(package: str) -> Path | None:
    """Return the folder of a package, None of a module of one file."""
    return _locate(package)[0]


def _locate(package: str) -> tuple[Path | None, Path | None]:
    """Return (folder, None) of a package or (None, file) of a module of one file."""
    if package == STDLIB:
        return Path(sysconfig.get_path("stdlib")), None
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))), None
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        return None, Path(spec.origin)
    raise DataError(
        f"package {package!r} of the data set is not installed: install it or take it off the list"
    )
