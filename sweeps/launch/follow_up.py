"""A job that launches a sweep again once others of it have left the queue: `cluster.keep_submitting=true`.

Started by a scheduler as `python -m sweeps.launch.follow_up ARRAY_FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sweeps.launch.launch import start_missing


def main(arguments: list[str]) -> None:
    """Launch the sweep of an array's folder again."""
    submission = start_missing(Path(arguments[0]).resolve().parents[1])
    print("\n".join([str(submission), *submission.notes]))


if __name__ == "__main__":
    main(sys.argv[1:])
