"""Groups of tests that one worker runs, because what they share takes seconds to make."""

from __future__ import annotations

import pytest

in_processes = pytest.mark.xdist_group("processes")  # forked from a server that has imported torch
imports_compiler = pytest.mark.xdist_group("compiler")  # that of torch, which counts FLOPs too
