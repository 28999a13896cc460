"""`loopscale fit` of a table, run in this process."""

from __future__ import annotations

import json

import pytest

import loopscale

QUICK = ("bootstrap=100", "validation=false", "format=json")


def fitted(capsys, *arguments):
    """Run `loopscale fit`; return its JSON."""
    loopscale.main(["fit", *arguments, *QUICK])
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    """Run `loopscale fit`; return its one line."""
    with pytest.raises(SystemExit) as ended:
        loopscale.main(["fit", *arguments, *QUICK])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and err.count("\n") == 1
    return err


def exponents(fit):
    """The exponents of the optimal size (or recurrence) and tokens by shared shape."""
    return [law["exponent"] for law in fit["group"]["estimators"][0]["laws"].values()]
