from __future__ import annotations

import pytest

from tests.workers import in_processes


@in_processes
def test_a_group_of_tests_belongs_to_one_worker(request):
    """pytest 9.2 ignores the groups of pytest-xdist 3.8 without a word; what they share is made thrice."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("these tests run in one process")
    assert request.node.nodeid.endswith("@processes")
