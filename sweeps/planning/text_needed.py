"""How much text a sweep reads, and how much its data set has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from analysis.format import plural
from harness.data.documents import text_path
from harness.data.text_files import find_text_files

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.dataset import DataConfig

# Training tokens of the data sets that are made without a download, by vocabulary size, as `loopscale data`
# counts them with the packages of the lock file.
COUNTED = {
    "installed_prose": {512: 10_788_243, 4096: 6_015_120},
    "installed_python": {512: 91_818_853, 4096: 56_000_000},
    "installed_python_small": {512: 17_101_694, 4096: 10_300_707},
    "installed_python_tiny": {512: 4_916_583, 4096: 2_922_294},
}
# Bytes of English that a token of the project's tokenizer stands for, by vocabulary size: measured on novels
# and textbooks (2.15 and 2.09 at 512, 3.59 and 3.89 at 4,096).
BYTES_PER_TOKEN = {512: 2.1, 4096: 3.7}
FOR_LAWS = ("installed_prose", "installed_python")  # the one whose losses scatter least comes first


def sufficient_text(tokens: float, vocabulary_size: int) -> str | None:
    """Return the first data set of `FOR_LAWS` with that many training tokens, None if there is none."""
    return next((name for name in FOR_LAWS if COUNTED[name].get(vocabulary_size, 0) >= tokens), None)


def lacks_text(frame: pd.DataFrame) -> bool:
    """Return True if the longest run of a plan would repeat its data set, as far as that is known."""
    if "dataset" not in frame:
        return False
    return any(_held(str(name), cells) < cells["tokens"].max() for name, cells in frame.groupby("dataset"))


def estimated_tokens(data_sets: Iterable[DataConfig]) -> dict[str, float]:
    """Return about how many training tokens the user's own texts hold, by name, from the size of their files.

    Compressed and Parquet files say too little of their text: a data set that has any is left out.
    """
    held = {}
    for data in data_sets:
        if data.source == "text" and data.path is not None:
            size = find_text_files(text_path(data)).plain_bytes()
            if size is not None:
                nearest = min(BYTES_PER_TOKEN, key=lambda known: abs(math.log(known / data.vocabulary_size)))
                held[data.name] = size * (1 - data.validation_fraction) / BYTES_PER_TOKEN[nearest]
    return held


def text_notes(
    frame: pd.DataFrame, prepare: str, max_epochs: float, estimated: Mapping[str, float]
) -> list[str]:
    """Return a line for each data set of a plan: the tokens of the longest run, and those that there are.

    Parameters
    ----------
    frame : the cells of the plan.
    prepare : the command that prepares the data.
    max_epochs : of the sweep, above which a cell is dropped.
    estimated : training tokens of data sets that are neither prepared nor shipped, by name.
    """
    if "dataset" not in frame:  # no cell was solved
        return []
    data_sets = frame.groupby("dataset", sort=False)
    return [
        _note(str(name), cells, prepare, max_epochs, estimated.get(str(name), math.inf))
        for name, cells in data_sets
    ]


def would_drop(frame: pd.DataFrame, max_epochs: float, estimated: Mapping[str, float]) -> bool:
    """Return True if runs will be dropped for want of text once it is prepared, as far as that is known."""
    if "dataset" not in frame:
        return False
    unprepared = frame[frame["data_digest"].isna()]
    return any(
        (
            cells["tokens"] > max_epochs * min(_held(str(name), cells), estimated.get(str(name), math.inf))
        ).any()
        for name, cells in unprepared.groupby("dataset")
    )


def _note(name: str, cells: pd.DataFrame, prepare: str, max_epochs: float, estimate: float) -> str:
    longest, vocabulary = float(cells["tokens"].max()), int(cells["vocabulary_size"].max())
    prepared, known = bool(cells["data_digest"].notna().all()), _held(name, cells)
    held = estimate if math.isinf(known) else known
    later = "" if prepared else f"; it is not prepared yet: launch does it, or {prepare}"
    if math.isinf(held):
        return f"data: the longest run reads {longest:.3g} tokens of {name}{later}"
    about, epochs = "the" if prepared else "about", longest / held
    source = f"{name}, by the size of its files" if math.isinf(known) else name
    text = f"data: the longest run reads {longest:.3g} of {about} {held:.3g} training tokens of {source} "
    text += f"({epochs:.2g} epochs)"
    if epochs > 1:
        dropped = int((cells["tokens"] > max_epochs * held).sum())
        repeated = int((cells["tokens"] > held).sum()) - dropped
        if dropped:
            verb = "would be" if not prepared else "is" if dropped == 1 else "are"
            why = f"for taking more than sweep.max_epochs={max_epochs:g}"
            text += f"; {plural(dropped, 'run')} {verb} dropped {why}"
        if repeated:
            own = "repeats its" if repeated == 1 else "repeat their"
            left_out = "which fit leaves out of laws (max_epochs=1)"
            text += f"; {plural(repeated, 'run')} {own} text, {left_out}"
        if math.isinf(known):
            return f"{text}; give {epochs:.2g} times the text, or budgets that are smaller by as much{later}"
        better = sufficient_text(longest, vocabulary)
        text += f"; data={better} has enough" if better else "; more text: data=fineweb_edu, or data=text"
    return text + later


def _held(name: str, cells: pd.DataFrame) -> float:
    """Return the training tokens of a data set, infinity where they are not known."""
    held = cells["unique_tokens"].iloc[0]
    if held and held > 0:  # else None or nan: not prepared
        return float(held)
    return COUNTED.get(name, {}).get(int(cells["vocabulary_size"].max()), math.inf)
