import threading

import numpy as np
import pytest
import torch

from harness.training.step import Prefetch, on_device
from tests.waiting import wait_for


def test_values_come_in_order_and_ahead_of_their_use():
    made = []

    def make(key):
        made.append(key)
        return key * key

    with Prefetch(make, range(10), ahead=2) as values:
        assert values.take() == 0
        wait_for(lambda: len(made) >= 4)  # taken, two waiting, one in hand
        assert made == [0, 1, 2, 3]
        assert [values.take() for _ in range(9)] == [key * key for key in range(1, 10)]
        with pytest.raises(IndexError):
            values.take()


def test_an_error_is_raised_where_its_value_is_taken():
    def make(key):
        if key == 1:
            raise OSError("the disk is gone")
        return key

    with Prefetch(make, range(3)) as values:
        assert values.take() == 0
        with pytest.raises(OSError, match="the disk is gone"):
            values.take()


def test_the_thread_ends_with_its_block():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Prefetch(lambda key: key, range(1000)):
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_time_spent_waiting_is_counted():
    release = threading.Event()

    def make(key):
        release.wait(10)
        return key

    with Prefetch(make, range(1)) as values:
        threading.Timer(0.2, release.set).start()
        values.take()
        assert 0.1 < values.waited_s < 10


def test_a_gpu_is_given_pinned_memory_so_that_a_copy_does_not_wait(monkeypatch):
    pinned, copied = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, **how: copied.append((device, how)) or tensor
    )
    arrays = [np.arange(3), np.ones((2, 2))]
    assert [tensor.tolist() for tensor in on_device(torch.device("cuda"), *arrays)] == [
        array.tolist() for array in arrays
    ]
    assert len(pinned) == 2 and copied == [(torch.device("cuda"), {"non_blocking": True})] * 2
    on_device(torch.device("cpu"), *arrays)
    assert len(pinned) == 2
