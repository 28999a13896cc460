"""The registered laws, each with its formula, source, columns, parameters and log terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.laws.law import Data, Law, Term, amplitude, exponent, shape

LOSS_FLOOR = amplitude("E", "nats", "loss that neither size nor data removes")
SIZE = (amplitude("A", "nats x parameters^alpha", "size term"), exponent("alpha", "exponent of size"))
DATA = (amplitude("B", "nats x tokens^beta", "data term"), exponent("beta", "exponent of data"))
FLOOR = amplitude("L_inf", "nats", "loss at unbounded depth")
DEPTH = amplitude("Z", "nats", "excess loss, extrapolated to no depth")
RATE = exponent("z", "decay with depth", grid=(0.05, 6.0, 24), bounds=(1e-4, 60.0))


def _power_law(data: Data) -> tuple[Term, ...]:
    return ({"k": 1.0, "g": np.log(data["x"])},)


def _size(data: Data) -> tuple[Term, ...]:
    return {"E": 1.0}, {"A": 1.0, "alpha": -np.log(data["params"])}


def _surface(data: Data) -> tuple[Term, ...]:
    return (
        {"E": 1.0},
        {"A": 1.0, "alpha": -np.log(data["params"])},
        {"B": 1.0, "beta": -np.log(data["tokens"])},
    )


def _iso_depth(data: Data, phi: Any) -> tuple[Term, ...]:
    size = data["params_once"] + data["params_looped"] * np.exp(phi * np.log(data["recurrence"]))
    return _surface({"params": size, "tokens": data["tokens"]})


def _overtraining(data: Data) -> tuple[Term, ...]:
    c, m = np.log(data["flops"]), np.log(data["tokens_per_param"])
    return {"E": 1.0}, {"a": 1.0, "eta": m - c}, {"b": 1.0, "eta": -m - c}


def _saturating(data: Data) -> tuple[Term, ...]:
    return {"L_inf": 1.0}, {"Z": 1.0, "z": -data["depth"]}


def _shifted_power(data: Data) -> tuple[Term, ...]:
    return {"L_inf": 1.0}, {"Z": 1.0, "z": -np.log1p(data["depth"])}


def _pure_power(data: Data) -> tuple[Term, ...]:
    return ({"Z": 1.0, "z": -np.log(data["depth"])},)


def _power(data: Data) -> tuple[Term, ...]:
    return {"L_inf": 1.0}, *_pure_power(data)


def _unified(data: Data, gamma: Any = 1.0) -> tuple[Term, ...]:
    u, v = np.log(data["params"]), np.log(data["tokens"])
    scaled = data["depth"] * np.exp(-gamma * np.log(data["mean_recurrence"]))
    return {"E": 1.0}, {"X": 1.0, "x": -u}, {"Y": 1.0, "y": -v}, {"Z": 1.0, "z": -scaled}


def _unscaled(data: Data) -> tuple[Term, ...]:
    return _unified({**data, "mean_recurrence": np.ones_like(data["depth"])})


def _task_score(data: Data, k: Any, L0: Any) -> tuple[Term, ...]:
    above = k * (data["loss"] - L0)
    with np.errstate(over="ignore"):  # in the branch that is not taken
        softplus = np.where(above.real > 0, np.log1p(np.exp(-above)), np.log1p(np.exp(above)) - above)
    return {"e": 1.0}, {"c": 1.0, None: -softplus}


UNIFIED = (
    LOSS_FLOOR,
    amplitude("X", "nats x parameters^x", "size term"),
    amplitude("Y", "nats x tokens^y", "data term"),
    DEPTH,
    exponent("x", "exponent of size"),
    exponent("y", "exponent of data"),
)
SCALED_RATE = exponent("z", "decay with depth over mean recurrence", grid=(0.5, 20.0, 8), bounds=(1e-3, 90.0))


def _law(name: str, formula: str, source: str, columns: str, parameters: tuple[Any, ...], terms: Any) -> Law:
    return Law(
        name=name,
        formula=formula,
        source=source,
        columns=tuple(columns.split()),
        parameters=parameters,
        log_terms=terms,
    )


LAWS = {
    law.name: law
    for law in (
        _law(
            "power_law",
            "k x^g",
            "Kaplan et al. 2020",
            "x",
            (
                amplitude("k", "that of the quantity", "value at x = 1"),
                exponent("g", "exponent", bounds=(-8.0, 8.0)),
            ),
            _power_law,
        ),
        _law(
            "size",
            "E + A N^-alpha",
            "Hoffmann et al. 2022, at one number of tokens",
            "params",
            (
                amplitude("E", "nats", "loss that no size removes at these tokens"),
                *SIZE,
            ),
            _size,
        ),
        _law(
            "surface",
            "E + A N^-alpha + B D^-beta",
            "Hoffmann et al. 2022; with N(mu) the training law of arXiv 2604.12946",
            "params tokens",
            (LOSS_FLOOR, SIZE[0], DATA[0], SIZE[1], DATA[1]),
            _surface,
        ),
        _law(
            "overtraining",
            "E + (a M^eta + b M^-eta) C^-eta",
            "Gadre et al. 2024",
            "flops tokens_per_param",
            (
                LOSS_FLOOR,
                amplitude("a", "nats x FLOPs^eta", "term that grows with tokens per parameter"),
                amplitude("b", "nats x FLOPs^eta", "term that falls with tokens per parameter"),
                exponent("eta", "exponent of compute"),
            ),
            _overtraining,
        ),
        _law(
            "iso_depth",
            "E + A (N_once + r^phi N_looped)^-alpha + B D^-beta",
            "arXiv 2604.21106",
            "params_once params_looped recurrence tokens",
            (
                LOSS_FLOOR,
                SIZE[0],
                DATA[0],
                SIZE[1],
                DATA[1],
                shape(
                    "phi",
                    "worth of a loop: 1 that of a fresh layer, 0 nothing",
                    (0.0, 0.3, 0.6, 1.0),
                    (-3.0, 3.0),
                ),
            ),
            _iso_depth,
        ),
        _law(
            "saturating",
            "L_inf + Z exp(-z T)",
            "arXiv 2604.12946",
            "depth",
            (FLOOR, DEPTH, RATE),
            _saturating,
        ),
        _law(
            "shifted_power",
            "L_inf + Z (1 + T)^-z",
            "arXiv 2604.12946",
            "depth",
            (FLOOR, DEPTH, RATE),
            _shifted_power,
        ),
        _law("power", "L_inf + Z T^-z", "arXiv 2604.12946", "depth", (FLOOR, DEPTH, RATE), _power),
        _law("pure_power", "Z T^-z", "arXiv 2604.12946", "depth", (DEPTH, RATE), _pure_power),
        _law(
            "unified",
            "E + X N^-x + Y D^-y + Z exp(-z T / mu)",
            "arXiv 2604.12946",
            "params tokens depth mean_recurrence",
            (*UNIFIED, SCALED_RATE),
            _unified,
        ),
        _law(
            "unified_unscaled",
            "E + X N^-x + Y D^-y + Z exp(-z T)",
            "arXiv 2604.12946",
            "params tokens depth",
            (*UNIFIED, RATE),
            _unscaled,
        ),
        _law(
            "unified_gamma",
            "E + X N^-x + Y D^-y + Z exp(-z T / mu^gamma)",
            "arXiv 2604.12946",
            "params tokens depth mean_recurrence",
            (
                *UNIFIED,
                SCALED_RATE,
                shape("gamma", "power of the mean recurrence", (0.5, 1.0, 1.5), (-1.0, 4.0)),
            ),
            _unified,
        ),
        _law(
            "task_score",
            "1 - score = e + c / (1 + exp(-k (L - L0)))",
            "arXiv 2412.04403",
            "loss",
            (
                amplitude("e", "score", "error at the least loss"),
                amplitude("c", "score", "what guessing adds to it"),
                shape("k", "steepness per nat", (1.0, 3.0, 9.0), (0.02, 200.0)),
                shape("L0", "loss at half the gain", tuple(np.geomspace(0.4, 12.0, 16)), (0.01, 30.0)),
            ),
            _task_score,
        ),
    )
}
