"""The settings of the commands on trained models; their defaults are in conf/table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from model.decoding import ExitRule
from sweeps.config.study import Seed


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`loopscale export`: one model's config, weights and tokenizer in a self-contained folder."""

    checkpoint: Annotated[str, MinLen(1)]
    folder: Annotated[str, MinLen(1)]
    cache: str = "runs/.data"
    format: Literal["loopscale", "published", "transformers"] = "loopscale"
    published: bool = False  # the same as format=published

    def __post_init__(self) -> None:
        if self.published and self.format == "transformers":
            raise ValueError("published=true and format=transformers are two layouts: leave one out")

    @property
    def layout(self) -> Literal["loopscale", "published", "transformers"]:
        """Return the layout of the files."""
        return "published" if self.published else self.format


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """`loopscale generate`; a depth of None stands for the model's mean recurrence."""

    checkpoint: Annotated[str, MinLen(1)]
    prompt: str
    cache: str = "runs/.data"
    tokens: Annotated[int, Gt(0)] = 64
    depth: Annotated[int, Gt(0)] | None = None
    kv_budget: Annotated[int, Gt(0)] | None = None
    exit: ExitRule = "fixed"
    threshold: Annotated[float, Ge(0)] = 0.0
    temperature: Annotated[float, Ge(0)] = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`loopscale eval` of one run, a checkpoint's folder or all finished runs of a sweep.

    With `tasks`, the scores on them; without, the validation loss of a run, or of a checkpoint on the data of
    the run `data`. None stands for that run's own evaluation settings. With `kv_budget` or `exit`, the
    validation loss when tokens are decoded one by one.
    """

    run: Annotated[str, MinLen(1)] | None = None  # a folder; with `sweep` a run id or the end of one
    checkpoint: Annotated[str, MinLen(1)] | None = None
    sweep: Annotated[str, MinLen(1)] | None = None
    root: str = "runs"
    cache: str = "runs/.data"
    format: Literal["text", "json"] = "text"
    data: Annotated[str, MinLen(1)] | None = None
    blocks: Annotated[int, Gt(1)] | None = None
    max_depth: Annotated[int, Gt(0)] | None = None
    kv_budget: Annotated[list[Annotated[int, Gt(0)]], MinLen(1)] | None = None
    exit: Literal["convergence", "entropy"] | None = None
    thresholds: Annotated[list[Annotated[float, Ge(0)]], MinLen(1)] | None = None
    depth: Annotated[int, Gt(0)] | None = None
    tasks: Annotated[list[Annotated[str, MinLen(1)]], MinLen(1)] | None = None
    bundle: Annotated[str, MinLen(1)] | None = None
    depths: Annotated[list[Annotated[int, Gt(0)]], MinLen(1)] | None = None
    seeds: Annotated[list[Seed], MinLen(1)] = field(default_factory=lambda: [1234])
    limit: Annotated[int, Gt(0)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    token_budget: Annotated[int, Gt(0)] | None = None
    folder: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        if (self.exit is None) != (self.thresholds is None):
            raise ValueError("exit and thresholds belong together, e.g. exit=convergence thresholds=0.1,0.03")
        if self.exit is not None and self.kv_budget is not None:
            raise ValueError("kv_budget and exit are two tables: leave one out")
        if self.depth is not None and not self.decodes:
            raise ValueError("depth is that of kv_budget and exit; the depths of tasks are depths=...")
        if self.tasks is not None:
            if self.data is not None:
                raise ValueError("data is for the validation loss: leave out data or tasks")
            if self.decodes:
                raise ValueError("kv_budget and exit are for the validation loss: leave out them or tasks")
            return
        if (self.run is None) == (self.checkpoint is None):
            raise ValueError(
                "no single model is named: set run=..., or checkpoint=... with data=RUN; "
                "a whole sweep needs tasks=..."
            )
        if self.run is None and self.data is None:
            raise ValueError(
                "data is not set: data=RUN names the run whose held-out data the checkpoint is scored on"
            )

    @property
    def decodes(self) -> bool:
        """Return True if tokens are decoded one by one."""
        return self.kv_budget is not None or self.exit is not None


@dataclass(frozen=True, kw_only=True)
class ServeCostConfig:
    """`loopscale serve_cost`; None stands for what the model's context and mean recurrence give."""

    checkpoint: Annotated[str, MinLen(1)] | None = None
    sweep: Annotated[str, MinLen(1)] | None = None
    also: list[str] = field(default_factory=list)
    root: str = "runs"
    cache: str = "runs/.data"
    format: Literal["text", "json"] = "text"
    depths: Annotated[list[Annotated[int, Gt(0)]], MinLen(1)] | None = None
    kv_budget: Annotated[int, Gt(0)] | None = None
    batches: Annotated[list[Annotated[int, Gt(0)]], MinLen(1)] = field(default_factory=lambda: [1, 8])
    prompts: Annotated[list[Annotated[int, Gt(0)]], MinLen(1)] | None = None
    tokens: Annotated[int, Gt(0)] | None = None
    repeats: Annotated[int, Gt(0), Le(1000)] = 5
    data: Annotated[str, MinLen(1)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.sweep is None):
            raise ValueError(
                "one of checkpoint=FOLDER and sweep=NAME names the models; also=FOLDER adds some"
            )
