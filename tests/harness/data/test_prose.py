"""The prose of installed packages, read from a package that is written here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from harness.data.dataset import DataConfig, DataError
from harness.data.documents import read_documents
from harness.data.prose import docstrings, prose_documents

LONG = "A sentence of this length is told apart from the headings of a page by its characters."
MODULE = f'''"""Summary of the module.

{LONG}
"""
text = """not a docstring, since it is assigned
"""


class Thing:
    r"""What a thing is, and why a reader of these words would want to have one of its kind at home.

        >>> Thing().code_that_is_no_prose()
    ======================================
    The number of loops is drawn anew for every sequence of a batch, and its mean is what is compared.
    """

    def method(self):
        """{LONG}"""
        # '"' and "'" alone open nothing
        return "x"
'''
PAGE = f"""{LONG}

Another page of the manual repeats what the module said, and then it adds a sentence of its own to it.
And one more, so that the page is long enough to be kept as a document of the data set that is made.
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package with a module, a manual page and a file without prose."""
    folder = tmp_path / "site" / "manualled"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(MODULE)
    (folder / "bare.py").write_text("x = 1\n")
    (folder / "page.rst").write_text(PAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    return "manualled"


def test_docstrings_are_the_strings_that_are_statements():
    first, second, third = docstrings(MODULE)
    assert first == f"Summary of the module.\n\n{LONG}"
    assert second.startswith("What a thing is") and "assigned" not in second
    assert third == LONG


def test_every_long_line_is_there_once_and_code_is_not(package):
    left_out: Counter[str] = Counter()
    documents = list(prose_documents([package], left_out))
    assert [(source, name) for source, name, _ in documents] == [
        (package, "__init__.py"),
        (package, "page.rst"),
    ]
    lines = [line for _, _, text in documents for line in text.splitlines()]
    assert lines.count(LONG) == 1
    assert "Summary of the module." in lines
    assert not any(">>>" in line or "===" in line for line in lines)
    assert left_out == {"repeated line": 2, "line of code": 2, "short": 1}


def test_the_split_is_by_document_and_the_same_in_every_process():
    config = DataConfig(
        name="prose",
        source="installed_prose",
        packages=["asyncio", "email", "json", "unittest"],
        validation_fraction=0.3,
    )
    documents = [(d.split, d.source, d.name, len(d.text)) for d in read_documents(config, Counter())]
    held_out = [split == "validation" for split, *_ in documents]
    assert len(documents) > 30 and 0.1 < sum(held_out) / len(held_out) < 0.5
    program = f"""
from collections import Counter
from harness.data.dataset import DataConfig
from harness.data.documents import read_documents
documents = read_documents({config!r}, Counter())
print([(d.split, d.source, d.name, len(d.text)) for d in documents])
"""
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ast.literal_eval(again.stdout) == documents


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"packages": []}, r"data\.packages is empty: list import names of installed packages"),
        (
            {"packages": ["json"], "validation_packages": ["re"]},
            r"data\.validation_packages=.* is a key of data\.source=installed_python, not of installed_prose",
        ),
    ],
)
def test_settings_that_do_not_belong_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        DataConfig(name="prose", source="installed_prose", **fields)


def test_a_package_that_is_missing_is_named():
    config = DataConfig(name="prose", source="installed_prose", packages=["nowhere_to_be_seen"])
    with pytest.raises(DataError, match="package 'nowhere_to_be_seen' of the data set is not installed"):
        list(read_documents(config, Counter()))
