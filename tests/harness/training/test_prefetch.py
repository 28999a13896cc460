import threading

import pytest

from harness.training.step import Prefetch
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
