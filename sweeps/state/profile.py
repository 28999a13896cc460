"""The cluster profile of a launched sweep, which commands without `cluster=` use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sweeps.config.compose import compose_study
from sweeps.config.study import StudyConfig
from sweeps.state.ledger import read_ledger

CHOICE = re.compile(r"\+?cluster(@[^=]*)?=")


def study_of(overrides: Sequence[str] | StudyConfig) -> StudyConfig:
    """Return the study that `overrides` describe, on the cluster of its sweep if they choose none.

    The sweep's profile is read again as it is now, with the fields that the last launch set. `cluster.KEY=`
    changes a field of it. Settings that are `auto` mean what they meant at the first launch.
    """
    study = compose_study(overrides)
    folder = Path(study.root) / str(study.sweep.name)
    if isinstance(overrides, StudyConfig) or not (folder / "sweep.json").exists():
        return study
    ledger = read_ledger(folder)
    kept: list[str] = []
    if not any(map(CHOICE.match, overrides)) and ledger.profile is not None:
        now = {text.partition("=")[0] for text in study.profile}
        kept = [text for text in ledger.profile if text.partition("=")[0] not in now]
    pinned = ledger.pinned_devices
    if kept or any(pinned.get(scale, device) != device for scale, device in study.devices.items()):
        study = compose_study([*kept, *overrides], devices=pinned)
    return study if study.profile or ledger.profile is not None else replace(study, cluster=ledger.cluster)
