"""`pursuit.json`: what a pursuit asked, and for every round what was known, chosen and paid."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from analysis.isoflop.curves import Quantity
from analysis.pursuit.policy import Cell, Policy
from analysis.pursuit.question import Answer, Question
from harness.storage.files import read_json, write_json
from model.config_validation import ConfigError, build

FILE = "pursuit.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The answer when a round was chosen; without an interval the reason."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    width: float | None = None
    budgets_flops: list[float] = field(default_factory=list)
    refusal: str | None = None

    def __str__(self) -> str:
        """Return the value with its interval, or the reason why there is none."""
        if self.width is None:
            return f"no interval: {self.refusal}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}], width {self.width:.3g}"


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round: what was known before it, why its cells were chosen, and what they cost.

    `cells` hold (mean recurrence, budget in FLOPs, seed). `flops` is what their runs cost by the plan, steps
    that they share with others included. `state` is chosen, launched or ended.
    """

    reason: str
    cells: list[tuple[int, float, int]]
    flops: float
    state: Literal["chosen", "launched", "ended"] = "chosen"
    failed_runs: list[str] = field(default_factory=list)
    before: Interval | None = None
    linear_width: float | None = None
    noise_nats: float | None = None
    law: dict[str, float] | None = None
    optima: dict[str, float] | None = None
    planned_flops: float | None = None
    expected_width: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a pursuit ended."""

    answered: bool
    reason: str
    answer: Interval
    spent_flops: float


@dataclass(frozen=True, kw_only=True)
class PursuitRecord:
    """Everything that a pursuit has decided so far; the file from which it continues."""

    schema_version: int = VERSION
    asked: Literal["exponent", "optimum", "looped_or_fixed"]
    quantity: Quantity
    target_flops: float | None = None
    target_width: float
    allowance_flops: float
    recurrences: list[int]
    budgets_flops: list[float]
    max_seeds: int
    seed: int
    rounds: list[Round] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def policy(self) -> Policy:
        """Return what the pursuit may do."""
        question = Question(asked=self.asked, quantity=self.quantity, target_flops=self.target_flops)
        return Policy(
            question=question,
            target_width=self.target_width,
            allowance_flops=self.allowance_flops,
            recurrences=tuple(self.recurrences),
            budgets_flops=tuple(self.budgets_flops),
            max_seeds=self.max_seeds,
            seed=self.seed,
        )

    @property
    def spent_flops(self) -> float:
        """Return the FLOPs of all rounds, by the plan."""
        return sum(one.flops for one in self.rounds)

    @property
    def cells(self) -> list[Cell]:
        """Return the cells of all rounds."""
        return [cell for one in self.rounds for cell in one.cells]


def begin(policy: Policy) -> PursuitRecord:
    """Return the record of a pursuit without rounds."""
    return PursuitRecord(
        asked=policy.question.asked,
        quantity=policy.question.quantity,
        target_flops=policy.question.target_flops,
        target_width=policy.target_width,
        allowance_flops=policy.allowance_flops,
        recurrences=list(policy.recurrences),
        budgets_flops=list(policy.budgets_flops),
        max_seeds=policy.max_seeds,
        seed=policy.seed,
    )


def interval_of(answer: Answer | None) -> Interval | None:
    """Return an answer as it is recorded."""
    if answer is None:
        return None
    return Interval(**(vars(answer) | {"budgets_flops": list(answer.budgets_flops)}))


def read(folder: Path) -> PursuitRecord | None:
    """Return the record of a pursuit's folder, None if it has none.

    Raises
    ------
    ConfigError : the file is of a later version, or damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path)
    if (version := content.get("schema_version")) != VERSION:
        raise ConfigError(f"{path}: schema_version={version}, this version reads {VERSION}")
    return build(PursuitRecord, content, f"{path}: ")


def write(folder: Path, record: PursuitRecord) -> None:
    """Write the record, whole or not at all."""
    content: dict[str, Any] = asdict(record)
    write_json(folder / FILE, content)
