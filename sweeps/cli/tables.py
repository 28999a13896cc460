"""Data frames as aligned text and as JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

RICH_ROWS = 300  # rich takes seconds for thousands of rows


def as_text(frame: pd.DataFrame, columns: dict[str, str]) -> str:
    """Return the named columns of `frame` as an aligned table; empty columns are left out."""
    kept = {
        name: title or name for name, title in columns.items() if name in frame and not _empty(frame[name])
    }
    rows = [
        [cell_text(str(name), value) for name, value in row.items()]
        for row in frame[list(kept)].to_dict("records")
    ]
    if len(rows) <= RICH_ROWS:
        return _rich_text(_rich_table(list(kept.values()), rows))
    widths = [max(map(len, column)) for column in zip(list(kept.values()), *rows, strict=True)]
    lines = [list(kept.values()), *rows]
    return "\n".join("  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) for line in lines)


def as_json(frame: pd.DataFrame, **more: Any) -> str:
    """Return `frame` as JSON records under "rows", beside `more`; missing values are null."""
    return to_json({"rows": frame.to_dict("records"), **more})


def to_json(value: Any) -> str:
    """Return indented JSON; numpy scalars become numbers, NaN and infinities null."""
    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=lambda scalar: scalar.item())
    return json.dumps(plain, indent=1)


def cell_text(name: str, value: Any) -> str:
    """Return one value as text: FLOPs and tokens to four digits, losses to four decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if name in ("target_flops", "nominal_flops", "budget_flops", "tokens"):
        return f"{value:.4g}"
    if name == "memory_bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if name == "eta_s":
        return clock(value)
    if name in ("train_loss_nats", "val_loss_nats"):
        return f"{value:.4f}"
    if isinstance(value, float):
        return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"
    return str(value)


def clock(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _empty(column: pd.Series) -> bool:
    return bool((column.isna() | (column.astype(str) == "")).all())


def _rich_table(titles: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for position, title in enumerate(titles):
        number = any(row[position][:1].isdigit() for row in rows)
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _rich_text(table: Table) -> str:
    from rich.console import Console

    console = Console(width=220, highlight=False, markup=False, emoji=False)  # brackets in a message are text
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
