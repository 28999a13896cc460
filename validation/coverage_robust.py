"""Do the intervals of the exponents cover where noise is unequal, has heavy tails, or a run is off?

python validation/coverage_robust.py [studies=2000] [processes=2] [folder=FOLDER] [out=FILE]

The studies of validation/coverage.py with noise=robust, which describes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.coverage import main
from validation.simulated import given

if __name__ == "__main__":
    main("robust", **given(sys.argv[1:]))
