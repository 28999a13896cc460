"""One HTML page that stands alone: a template with its values, figures embedded as PNG, and the versions."""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import scipy

from analysis.figures import style
from analysis.laws.objective import PUBLISHED_DELTA

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, drawn: Sequence[tuple[style.ReportFigure, bytes]], **values: Any) -> str:
    """Return a page that stands alone: figures are embedded as PNG."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    figures = [
        {
            "name": one.name,
            "caption": one.caption,
            "image": base64.b64encode(png).decode(),
            "width": f"{100 * one.figure.get_figwidth() / style.PAGE_INCHES:.0f}%",
        }
        for one, png in drawn
    ]
    return environment.get_template(template).render(
        {"unit": "nats"} | values,
        figures=figures,
        versions=_versions(),
        published_delta=PUBLISHED_DELTA,
    )


def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("loopscale")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed: run from its source"
    return {
        "loopscale": own,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
        "matplotlib": matplotlib.__version__,
    }
