"""One HTML page that stands alone: a template with its values, figures embedded as PNG, and the versions."""

from __future__ import annotations

import base64
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import scipy

from analysis.figures import style

PAGE_PIXELS = 1080  # width of the widest figures on the page
TEMPLATES = Path(__file__).parent / "templates"
NUMERIC = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( \[[-+−\d., eopn]+\])?( ± [\d.]+)?|–")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure as PNG, and as PNG for a narrow screen where it looks otherwise there."""

    figure: style.ReportFigure
    png: bytes
    narrow_png: bytes | None = None


def embedded(drawn: Drawn) -> dict[str, Any]:
    """Return a figure as the templates embed it."""
    share = min(1.0, drawn.figure.figure.get_figwidth() / style.PAGE_INCHES)
    return {
        "name": drawn.figure.name,
        "caption": drawn.figure.caption,
        "image": base64.b64encode(drawn.png).decode(),
        "narrow": drawn.narrow_png and base64.b64encode(drawn.narrow_png).decode(),
        "width": f"{share * PAGE_PIXELS:.0f}px",
    }


def page(template: str, figures: Sequence[Mapping[str, Any]], **values: Any) -> str:
    """Return a page that stands alone; `figures` come from `embedded`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["numeric"] = lambda cell: NUMERIC.fullmatch(str(cell)) is not None
    return environment.get_template(template).render(
        {"unit": "nats"} | values, figures=figures, versions=_versions()
    )


def own_version() -> str:
    """Return the version of loopscale that analyses."""
    try:
        return importlib.metadata.version("loopscale")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: run from its source"


def _versions() -> dict[str, str]:
    return {
        "loopscale": own_version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
        "matplotlib": matplotlib.__version__,
    }
