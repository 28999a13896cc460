from pathlib import Path

from sweeps.launch.launch import write_ledger


def test_a_launch_packs_what_its_runs_read(tiny_study, tmp_path):
    study = tiny_study("training.packing=best_fit", f"cache={tmp_path / 'own'}")
    write_ledger(study)
    lengths = {run.model.sequence_length for run in study.runs.values()}
    packed = {path.name for path in Path(study.cache).glob("*/packed-*")}
    assert packed == {f"packed-1-{split}-{n}" for split in ("train", "validation") for n in lengths}
