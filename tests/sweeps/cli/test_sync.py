import loopscale
from sweeps.launch.launch import write_ledger


def test_runs_are_synchronised_by_several_processes_in_their_order(tiny_study, monkeypatch):
    monkeypatch.setattr("harness.data.encoding.available_cores", lambda: 2)
    study = tiny_study()
    ledger = write_ledger(study)
    rows = loopscale.sync([f"sweep={ledger.name}", f"root={study.root}"])
    assert rows["run_id"].tolist() == sorted(ledger.run_ids) and len(rows) > 2
    assert set(rows["wandb"]) == {"nothing measured yet"}
