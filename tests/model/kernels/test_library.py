"""Where the compiled kernels are kept: what is loaded from there runs as this user."""

from __future__ import annotations

import os

import pytest

from model.kernels.cpu import library


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """A function that returns the path of the library, with a compiler that writes its name and counts."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho >> {tmp_path}/calls\nwhile [ "$1" != -o ]; do shift; done\necho ours > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def path():
        made = library._compiled()
        return made, len((tmp_path / "calls").read_text())

    return path


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_no_other_may_write_what_is_loaded(compiled, umask):
    before = os.umask(umask)
    try:
        path, _ = compiled()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o022 == path.parent.stat().st_mode & 0o022 == 0
    assert compiled() == (path, 1)


@pytest.mark.parametrize("harm", ["writable by all", "a link", "another's"])
def test_a_file_that_another_may_have_written_is_compiled_again(compiled, tmp_path, harm):
    path, _ = compiled()
    path.write_text("theirs\n")
    if harm == "writable by all":
        path.chmod(0o777)
    elif harm == "a link":
        path.rename(tmp_path / "theirs.so")
        path.symlink_to(tmp_path / "theirs.so")
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        pytest.skip("only root can give a file away")
    again, calls = compiled()
    assert (again, calls, again.read_text()) == (path, 2, "ours\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_folder_of_another_is_not_used(compiled):
    path, _ = compiled()
    os.chown(path.parent, 12345, -1)
    again, calls = compiled()
    assert again.parent != path.parent and calls == 2
    assert again.parent.stat().st_mode & 0o077 == 0
