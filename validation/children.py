"""Processes forked from a validation study, each for one piece of its work."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence


def in_children(works: Sequence[Callable[[], None]]) -> None:
    """Do each work in a forked process and wait for all of them.

    Raises
    ------
    SystemExit : one of them failed; its traceback is on stderr.
    """
    children = []
    for work in works:
        children.append(os.fork())
        if children[-1] == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    # By its pid: what else a study has started is a child too.
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit("a process of the study has failed, see above")
