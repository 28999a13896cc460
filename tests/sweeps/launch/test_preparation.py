import re
from pathlib import Path

import pytest

from harness.data.dataset import DataError
from sweeps.launch.launch import write_ledger


def test_a_launch_packs_what_its_runs_read(tiny_study, tmp_path):
    study = tiny_study("training.packing=best_fit", f"cache={tmp_path / 'own'}")
    write_ledger(study)
    lengths = {run.model.sequence_length for run in study.runs.values()}
    packed = {path.name for path in Path(study.cache).glob("*/packed-*")}
    assert packed == {f"packed-1-{split}-{n}" for split in ("train", "validation") for n in lengths}


def test_a_launch_refuses_to_evaluate_on_more_text_than_is_held_out(tiny_study, tmp_path):
    with pytest.raises(DataError, match=r"validation blocks of \d+ tokens, not 9999") as caught:
        write_ledger(tiny_study("evaluation.blocks=9999"))
    assert not (tmp_path / "runs" / "tiny").exists()
    enough = re.search(r"set (evaluation.blocks=\d+) or less", str(caught.value))[1]
    assert write_ledger(tiny_study(enough)).run_ids
