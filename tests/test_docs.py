"""The documentation: modules, files and links that it names exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "model|harness|sweeps|analysis|conf|tests|validation|benchmarks|docs"
# `room/sub/file.py`, `room/sub/` and `room.sub.module.name`; no placeholders such as NAME.yaml.
PATH = re.compile(rf"^(?:python )?((?:{FOLDERS})/[\w./-]*)$")
DOTTED = re.compile(r"^((?:model|harness|sweeps|analysis)(?:\.\w+){2,})(?:\(.*\))?$")


def named(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def resolves(dotted: str) -> bool:
    """Return True if a module has this name, or an object in a module of the rooms."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        if path.is_dir() or path.with_suffix(".py").exists():
            value = importlib.import_module(".".join(parts[:count]))
            for name in parts[count:]:
                if not hasattr(value, name):
                    return False
                value = getattr(value, name)
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_exist(page):
    spans = named(page)
    paths = [match[1] for match in map(PATH.match, spans) if match and not re.search("[A-Z]{4}", match[1])]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = [match[1] for match in map(DOTTED.match, spans) if match]
    assert [name for name in modules if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_of_a_page_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if not re.match(r"\w+:", link)]
    assert [link for link in local if link and not (page.parent / link).exists()] == []


def test_the_gallery_shows_every_figure():
    gallery = ROOT / "docs" / "gallery.md"
    shown = re.findall(r"!\[.+?\]\(([^)\s]+)\)", gallery.read_text(encoding="utf-8"))
    figures = (ROOT / "docs").rglob("*.png")
    assert sorted(shown) == sorted(str(path.relative_to(ROOT / "docs")) for path in figures)


def test_the_site_builds_without_a_dead_link(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    assert (tmp_path / "laws.html").exists()


def test_the_map_of_the_code_is_checked():
    spans = named(ROOT / "CONTRIBUTING.md")
    assert sum(bool(PATH.match(span)) for span in spans) > 30
    assert sum(bool(DOTTED.match(span)) for span in spans) >= 3
    assert not resolves("analysis.laws.no_such_module") and not resolves("model.config.NoSuchClass")


def test_every_pin_has_hashes_and_no_address():
    """The lock can be installed with --require-hashes from any index, and pins torch without a build."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [number for number, line in enumerate(lines) if line[:1].isalnum()]
    assert len(pins) > 100
    for number in pins:
        assert re.fullmatch(r"[a-z0-9._-]+==[^ +]+( ;.*)? \\", lines[number]), lines[number]
        assert lines[number + 1].startswith("    --hash=sha256:"), lines[number]
    assert not [line for line in lines if "://" in line or line.startswith(("-", " -i"))]


def test_pages_and_pictures_that_are_made_are_not_committed():
    """Reports and PDFs come from the tables; the repository holds each figure once, as PNG."""
    tracked = subprocess.run(
        ["git", "ls-files", "docs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = tracked.stdout.split()
    if tracked.returncode != 0:
        pytest.skip("not a checkout of git")
    assert names and not [name for name in names if name.endswith((".html", ".pdf", ".svg"))]
    assert sum((ROOT / name).stat().st_size for name in names) < 8 << 20
