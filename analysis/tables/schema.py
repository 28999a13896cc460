"""The columns of the runs, depths, scores and items tables, and the check of a table against them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

SCHEMA_VERSION = 5
# Columns of the runs table by the version that added them, with their value in older tables.
ADDED: dict[int, dict[str, int | float | str]] = {
    2: {
        "lr_scaling": "none",
        "skipped_steps": 0,
        "loss_spikes": 0,
        "device_s": math.nan,
        "mfu": math.nan,
        "data_wait_share": math.nan,
        "peak_memory_bytes": math.nan,
        "devices": 1,
        "micro_batch_changed": 0,
    },
    3: {
        "core_tasks": math.nan,
        "core_extended_tasks": math.nan,
        "trunk_steps": 0,
        "trunk_flops": 0.0,
        "trunk_share_flops": 0.0,
    },
    4: {"recipe": ""},
    5: {"kernels": ""},
}

Kind = Literal["string", "float64", "int64"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its name (with the unit in it), storage type and meaning."""

    name: str
    kind: Kind
    meaning: str


def _columns(text: str) -> tuple[Column, ...]:
    rows = [line.split(maxsplit=2) for line in text.strip().splitlines()]
    kinds: dict[str, Kind] = {"str": "string", "float": "float64", "int": "int64"}
    return tuple(Column(name=name, kind=kinds[kind], meaning=meaning) for name, kind, meaning in rows)


RUNS = _columns("""
schema_version                     int    version of this list of columns
run_id                             str    <readable>-<8 hex>, the hash of the science fields
sweep                              str    name of the sweep that the run belongs to
scale                              str    name of the model size
kind                               str    looped, fixed (looped model at depth exactly 1) or transformer
width                              int    model width d
prelude_layers                     int    layers before the loop
core_layers                        int    layers inside the loop (0 for a transformer)
coda_layers                        int    layers after the loop
vocabulary_size                    int    rows of the embedding table
injection                          str    how the prelude enters the loop: diagonal, linear or add
n_params_total                     int    all parameters
n_params_embedding                 int    token embedding (tied with the unembedding)
n_params_value_embedding           int    value-embedding tables
n_params_core                      int    parameters inside the loop
n_params_other                     int    all parameters that are none of the above
mean_recurrence                    float  mean number of loops
backprop_depth                     float  loops that carry gradient at most
depth_sampling                     str    law of the sampled depth, "fixed" for none
dataset                            str    name of the data set
data_digest                        str    digest of documents, split and tokenizer
unique_tokens                      int    distinct training tokens available
epochs                             float  tokens / unique_tokens
optimizer                          str    name of the optimiser
adamw_learning_rate                float  peak learning rate of the AdamW group
muon_learning_rate                 float  peak learning rate of the Muon group (NaN without Muon)
lr_scaling                         str    how learning rates were transferred over widths: none or mup_width
cooldown_fraction                  float  share of the steps in which the learning rate falls
recipe                             str    other settings that change what is trained and are not default
trunk_id                           str    shared trunk that the run branched from, empty for none
trunk_steps                        int    steps taken over from it
trunk_flops                        float  executed_flops of those steps, counted there as its own
trunk_share_flops                  float  its share of them; executed_flops - trunk_flops + this was paid
accounting                         str    FLOP accounting that solved the steps: paper or released
flops_per_token_fixed              float  a of f = a + b mean_recurrence + c backprop_depth
flops_per_token_per_loop           float  b, FLOPs per token and loop
flops_per_token_per_backprop_loop  float  c, FLOPs per token and loop with gradient
target_flops                       float  the budget asked for
nominal_flops                      float  tokens x f at mean_recurrence and backprop_depth
expected_flops                     float  tokens x f at the moments of the depth sampler
executed_flops                     float  FLOPs counted while training
tokens                             int    training tokens, padding left out
tokens_padded                      int    padding positions that were computed
steps                              int    optimiser steps
batch_tokens                       int    tokens in one optimiser step
sequence_length                    int    tokens in one sequence
seed                               int    seed of weights, data order and depths
val_loss_nats                      float  validation loss at depth mean_recurrence, nats per token
val_loss_se_nats                   float  its standard error over validation blocks
val_bits_per_byte                  float  the same loss in bits per byte of text
val_unigram_nats                   float  entropy of the validation tokens under their own frequencies
core                               float  Core score at depth mean_recurrence, NaN until evaluated
core_tasks                         float  of its 22 tasks, those that were scored
core_extended                      float  Core-Extended score, NaN until evaluated
core_extended_tasks                float  of its 46 tasks, those that were scored
skipped_steps                      float  steps not applied, their loss or gradient not finite
loss_spikes                        float  losses far above their running mean
wall_s                             float  seconds of training and evaluation over all attempts
device_s                           float  wall_s summed over devices
tokens_per_s                       float  training throughput
mfu                                float  executed_flops per second over the peak of all devices
data_wait_share                    float  share of the training time spent waiting for data
peak_memory_bytes                  float  most memory that one process held
devices                            int    processes, one device each, that trained the run
device                             str    device name
kernels                            str    how steps were computed: reference (torch), cpu (C++); if compiled
attempts                           int    times that the run was started
micro_batch_changed                int    1 where it was halved to fit memory: summed in another order
status                             str    planned, submitted, running, done or failed:<class>
code_version                       str    version of loopscale and of the checkout
""")

DEPTHS = _columns("""
run_id            str    run that was evaluated
depth             int    test-time depth T
val_loss_nats     float  validation loss at that depth, nats per token
val_loss_se_nats  float  its standard error over validation blocks
""")

SCORES = _columns("""
run_id               str    run that was evaluated
task                 str    task, or the suite whose tasks' mean the row is
depth                int    test-time depth T
tasks                str    of a suite: how many of its tasks were there, e.g. 21 of 22 tasks
items                int    items scored
seeds                int    few-shot seeds
accuracy             float  share of items answered rightly (NaN for a suite)
chance               float  accuracy of guessing among the options of the file
baseline             float  random baseline of eval_meta_data.csv
centred              float  (accuracy - baseline) / (1 - baseline); of a suite the mean: the Core score
chance_corrected     float  (accuracy - chance) / (1 - chance)
se                   float  binomial standard error of the accuracy; of a suite, of its centred score
seeds_se             float  standard error over few-shot seeds, NaN with one
chance_corrected_se  float  binomial standard error of chance_corrected
log_prob_per_byte    float  mean log-probability of the gold answer, nats per byte
log_prob_se          float  its standard error over items
margin_per_byte      float  log_prob_per_byte above the mean of the other options, NaN without options
margin_se            float  its standard error over items
cropped              float  share of items whose prompt lost its beginning to the context
""")

ITEMS = _columns("""
run_id       str    run that was evaluated, at depth mean_recurrence
suite        str    suite whose score the item enters
task         str    its task
item         int    its place in the evaluation's order
data_digest  str    digest of the task's data: runs are paired where it agrees
baseline     float  random baseline of the task
correct      float  share of the few-shot seeds that answered it rightly
""")


class TableError(ValueError):
    """A table that cannot be read as a runs or depth table."""


def migrate(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a runs table of any earlier version as one of this version; other tables as they are."""
    if "schema_version" not in frame or not (_versions(frame) < SCHEMA_VERSION).any():
        return frame
    frame = frame.copy()
    for version, columns in ADDED.items():
        older = _versions(frame) < version
        for name, value in columns.items():
            if name not in frame:
                frame[name] = value
            frame.loc[older & frame[name].isna(), name] = value
    return frame.assign(schema_version=SCHEMA_VERSION)


def _versions(frame: pd.DataFrame) -> pd.Series:
    """Return the versions of the rows, NaN where a damaged table has something else there."""

    versions: pd.Series = pd.to_numeric(frame["schema_version"], errors="coerce")
    return versions


def conform(frame: pd.DataFrame, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Return `frame` with exactly `columns`, in order and of their types; older runs tables are migrated.

    Raises TableError for a missing or unknown column, for a value that does not fit its type and, in a
    runs table, for a schema version newer than this one.
    """
    if "schema_version" in frame and len(frame) and _versions(frame).max() > SCHEMA_VERSION:
        raise TableError(
            f"schema_version {frame['schema_version'].max()} is newer than {SCHEMA_VERSION}: update loopscale"
        )
    frame = migrate(frame)
    names = [column.name for column in columns]
    missing = [name for name in names if name not in frame]
    unknown = [name for name in frame if name not in names]
    if missing or unknown:
        raise TableError(f"columns missing: {missing or 'none'}; columns unknown: {unknown or 'none'}")
    try:
        return frame[names].astype({column.name: column.kind for column in columns})
    except (TypeError, ValueError) as error:
        raise TableError(f"a value does not fit its column: {error}") from error
