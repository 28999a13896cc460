"""Checkpoints: whole or refused, never half."""

from __future__ import annotations

import json
import os
import random
import signal
import threading

import pytest
import torch

from harness.distributed.process_group import Ranks
from harness.training import checkpoint_writer
from harness.training.checkpoint import Checkpoint, CheckpointError, checkpoint_folders, load, load_newest
from harness.training.checkpoint_writer import begin_save, host_copy, save
from tests.waiting import wait_for


def checkpoint(step):
    return Checkpoint(
        step=step,
        model={"w": torch.arange(1000.0) + step},
        optimizer={"w.momentum": torch.full((10,), 0.1)},
        counters={"executed_flops": 1.5e9},
    )


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    saved = checkpoint(7)
    back = load(save(tmp_path, saved, keep=2))
    assert back.step == 7 and back.counters == saved.counters
    assert torch.equal(back.model["w"], saved.model["w"])
    assert torch.equal(back.optimizer["w.momentum"], saved.optimizer["w.momentum"])


def test_only_the_newest_are_kept(tmp_path):
    for step in range(5):
        save(tmp_path, checkpoint(step), keep=2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step_00000003", "step_00000004"]


@pytest.fixture
def held(monkeypatch):
    """Let no file of a checkpoint be finished before the event is set."""
    go = threading.Event()
    write = checkpoint_writer.write_shards

    def when_let_go(path, shards):
        path.write_bytes(b"half")
        assert go.wait(timeout=240)
        return write(path, shards)

    monkeypatch.setattr(checkpoint_writer, "write_shards", when_let_go)
    yield go
    go.set()


def test_a_checkpoint_that_is_being_written_is_none(tmp_path, held):
    held.set()
    save(tmp_path, checkpoint(1), keep=2)
    held.clear()
    state = checkpoint(2)
    pending = begin_save(tmp_path, host_copy(state), keep=2)
    assert not pending.is_written() and load_newest(tmp_path).step == 1
    state.model["w"].zero_()  # as the next step does
    held.set()
    assert load(pending.publish()).model["w"][3] == 5.0
    assert pending.is_written() and load_newest(tmp_path).step == 2


def test_a_process_killed_while_it_writes_loses_no_checkpoint(tmp_path, held):
    held.set()
    save(tmp_path, checkpoint(1), keep=1)
    held.clear()
    if (child := os.fork()) == 0:
        begin_save(tmp_path, host_copy(checkpoint(2)), keep=1)
        signal.pause()
    wait_for(lambda: any(tmp_path.glob(".step_*/model.safetensors")))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert load_newest(tmp_path).step == 1
    held.set()
    save(tmp_path, checkpoint(3), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_an_error_of_the_thread_is_raised_where_the_checkpoint_is_published(tmp_path, monkeypatch):
    def full(path, shards):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_shards", full)
    pending = begin_save(tmp_path, checkpoint(1), keep=2)
    with pytest.raises(OSError, match="No space left"):
        pending.publish()
    assert load_newest(tmp_path) is None


def test_an_error_of_another_process_is_raised_in_all(tmp_path):
    class Two(Ranks):
        def all_gather(self, item):
            return [item, OSError("No space left on device")]

    save(tmp_path, checkpoint(1), keep=2)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, checkpoint(2), keep=2, ranks=Two())
    assert load_newest(tmp_path).step == 1


def test_no_checkpoint_is_none(tmp_path):
    assert load_newest(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_truncation_anywhere_falls_back_to_the_one_before(tmp_path, name):
    draw = random.Random(0)
    for trial in range(20):
        folder = tmp_path / str(trial)
        save(folder, checkpoint(1), keep=2)
        newest = save(folder, checkpoint(2), keep=2)
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[: draw.randrange(len(content) - 1)])
        with pytest.warns(UserWarning, match="is corrupt"):
            assert load_newest(folder).step == 1


def test_a_flipped_bit_is_noticed_and_nothing_is_deleted(tmp_path):
    path = save(tmp_path, checkpoint(3), keep=2)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum; no other is intact"):
        load_newest(tmp_path)
    assert checkpoint_folders(tmp_path) == [path]


def test_a_corrupt_checkpoint_that_was_passed_over_does_not_crowd_out_good_ones(tmp_path):
    save(tmp_path, checkpoint(1), keep=1)
    newest = save(tmp_path, checkpoint(5), keep=2)
    (newest / "model.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is corrupt"):
        assert load_newest(tmp_path).step == 1
    save(tmp_path, checkpoint(2), keep=1)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step_00000002"]
    assert load_newest(tmp_path).step == 2


def test_an_index_of_other_types_is_corrupt(tmp_path):
    path = save(tmp_path, checkpoint(1), keep=2)
    state = json.loads((path / "state.json").read_text())
    for entry in ("x", 5, {"shape": [1000], "files": 5}, {"shape": [1000], "files": [[]]}):
        (path / "state.json").write_text(json.dumps(state | {"model": {"w": entry}}))
        with pytest.raises(CheckpointError, match=f"checkpoint {path} is corrupt"):
            load(path)


def test_what_a_killed_save_left_behind_is_removed(tmp_path):
    (tmp_path / ".step_00000003.4711").mkdir(parents=True)
    save(tmp_path, checkpoint(4), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def test_a_file_that_the_system_does_not_give_is_no_corruption(tmp_path):
    """A lost permission or a stale mount passes; advice to delete would cost the run."""
    save(tmp_path, checkpoint(1), keep=2)
    file = save(tmp_path, checkpoint(2), keep=2) / "model.safetensors"
    file.unlink()
    file.symlink_to(file)  # root may read everything, but not this
    with pytest.raises(
        OSError, match=r"Too many levels of symbolic links: .*step_00000002/model\.safetensors"
    ):
        load_newest(tmp_path)


def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    """For colleagues of a group; safetensors writes for the owner alone."""
    before = os.umask(0o002)
    try:
        files = list(save(tmp_path, checkpoint(1), keep=1).iterdir())
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in files} == dict.fromkeys(
        (file.name for file in files), 0o664
    )
