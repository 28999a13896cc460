"""Train every injection at five learning rates with three seeds, and draw which runs stay stable.

python validation/stability.py [key=value ...]

Launches the sweep `stability` (45 runs, some minutes on two cores; interrupted, it continues), waits for it,
and writes docs/validation/stability.json, one row per run, and docs/stability.png. A run counts as
unstable when it diverged or its training loss spiked (conf/loopscale.yaml, guardrails), or when it ended no
better than the unigram frequencies. The spectral radius is that of the linear map that carries the state
from loop to loop, the largest seen in training.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loopscale
from analysis.figures import style
from harness.run.folder import RunFolder
from harness.run.metrics import read_metrics
from harness.storage.files import write_json
from sweeps.state.status import is_worked_on

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOOKS: dict[str, dict[str, Any]] = {  # of an injection
    "diagonal": {"color": "#0072B2", "marker": "o"},
    "linear": {"color": "#D55E00", "marker": "s"},
    "add": {"color": "#009E73", "marker": "^"},
}
RATE = "adamw_learning_rate"


def row_of(folder: Path, planned: dict[str, Any]) -> dict[str, Any]:
    """Return what one run came to: its place in the grid, how it ended, spikes and spectral radius."""
    lines = read_metrics(RunFolder(folder).metrics)
    status = RunFolder(folder).status()
    radii = [line["spectral_radius"] for line in lines if line.get("spectral_radius") is not None]
    return {
        "injection": planned["injection"],
        RATE: planned[RATE],
        "seed": planned["seed"],
        "status": status.failure_class or status.state,
        "steps_taken": lines[-1]["step"] if lines else 0,
        "loss_spikes": lines[-1]["loss_spikes"] if lines else 0,
        "skipped_steps": lines[-1]["skipped_steps"] if lines else 0,
        "spectral_radius_max": max(radii, default=None),
        "val_loss_nats": planned["val_loss_nats"],
        "val_unigram_nats": planned["val_unigram_nats"],
    }


def unstable(row: dict[str, Any]) -> bool:
    """Return True if a run diverged, its training loss spiked, or it ended no better than the unigram."""
    if row["status"] == "diverged" or row["loss_spikes"] > 0:
        return True
    return row["val_loss_nats"] is not None and row["val_loss_nats"] >= row["val_unigram_nats"]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of unstable runs, the spectral radius and the validation loss over the learning rate."""
    rates = sorted({row[RATE] for row in rows})
    with style.styled():
        figure, panels = style.figure(3, height=2.3)
        for place, (injection, look) in enumerate(LOOKS.items()):
            own = [row for row in rows if row["injection"] == injection]
            shift = 1.06 ** (place - 1)  # side by side where they coincide
            shares = [sum(unstable(r) for r in own if r[RATE] == rate) / count(own, rate) for rate in rates]
            panels[0].plot([r * shift for r in rates], shares, **look, label=injection)
            for ax, key in ((panels[1], "spectral_radius_max"), (panels[2], "val_loss_nats")):
                seen = [row for row in own if row[key] is not None]
                ax.plot(
                    [r[RATE] * shift for r in seen],
                    [r[key] for r in seen],
                    **look,
                    linestyle="none",
                    alpha=0.7,
                )
        panels[1].axhline(1.0, color=style.INK, linewidth=0.6, linestyle="--", label="radius 1")
        panels[1].set_yscale("log")
        names = ("share of unstable runs", "largest spectral radius", "validation loss (nats per token)")
        for ax, name, letter in zip(panels, names, "abc", strict=True):
            ax.set_xscale("log")
            ax.set(xlabel="AdamW learning rate", ylabel=name, title=letter)
            style.log_axis(ax.xaxis, rates, room=0.1)
        panels[0].set_ylim(-0.05, 1.05)
        style.decade_axis(panels[1].yaxis, *panels[1].get_ylim())
        handles = [*panels[0].get_legend_handles_labels()[0], *panels[1].get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        style.freeze_layout(figure)
        figure.savefig(path, dpi=style.PNG_DPI)


def count(rows: list[dict[str, Any]], rate: float) -> int:
    """Count the runs at one learning rate."""
    return sum(row[RATE] == rate for row in rows)


def main() -> None:
    """Run the sweep to its end, then write its table and figure."""
    overrides = sys.argv[1:]
    frame = loopscale.launch(["sweep=stability", "confirm=false", *overrides])
    roots = [text for text in overrides if text.startswith("root=")]
    sweep = Path(roots[-1].removeprefix("root=") if roots else "runs") / "stability"
    while is_worked_on(sweep):
        time.sleep(2)
    runs, _ = loopscale.collect(["sweep=stability", *roots])
    rows = [
        row_of(sweep / row["run_id"], row)
        for row in runs.astype(object).where(runs.notna(), None).to_dict("records")
    ]
    rows.sort(key=lambda row: (row["injection"], row[RATE], row["seed"]))
    assert len(rows) == len(frame)
    command = "python validation/stability.py"
    settings = "conf/sweep/stability.yaml"
    write_json(
        DOCS / "validation" / "stability.json", {"command": command, "settings": settings, "runs": rows}
    )
    draw(rows, DOCS / "stability.png")


if __name__ == "__main__":
    main()
