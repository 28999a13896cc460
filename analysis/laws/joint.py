"""One law over several model sizes: every size keeps its amplitudes, all share the exponents.

PAPER (d, e) fits each size apart, on few points and with parameters that N(mu) alone moves. Shared exponents
ask the sizes together; what differs between them goes into the amplitudes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.config import Array
from analysis.laws.law import Data, Law, Parameter

SIZE = "size"  # column with the place of each point's size, counted from 1


def joint(law: Law, sizes: Sequence[str]) -> Law:
    """Return `law` with an amplitude per size; its points need the column `size`, 1 for the first name.

    Raises ValueError for a law whose log terms bend in a parameter.
    """
    if any(parameter.kind == "shape" for parameter in law.parameters):
        raise ValueError(f"the {law.name} law has no joint form: a shape parameter is not linear in a term")
    amplitudes = [i for i, parameter in enumerate(law.parameters) if parameter.kind == "amplitude"]
    others = [i for i in range(len(law.parameters)) if i not in amplitudes]
    parameters: list[Parameter] = [
        replace(law.parameters[i], name=f"{law.parameters[i].name}[{size}]")
        for i in amplitudes
        for size in sizes
    ]

    def terms(data: Data) -> Array:
        base = np.asarray(law.terms(data))
        here = np.asarray(data[SIZE])[:, None] == np.arange(1, len(sizes) + 1)
        split = base[..., amplitudes, None] * here[:, None, :]
        return np.concatenate([split.reshape(*base.shape[:2], -1), base[..., others]], -1)

    return replace(
        law,
        name=f"{law.name}_joint",
        formula=f"{law.formula}, amplitudes by size",
        columns=(*law.columns, SIZE),
        parameters=(*parameters, *(law.parameters[i] for i in others)),
        terms=terms,
    )
