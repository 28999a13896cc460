import subprocess
import sys

PROBE = """
import sys, time
start = time.perf_counter()
import pandas, scipy.optimize
others = time.perf_counter()
import analysis
print((time.perf_counter() - others) / (others - start))
print(*sorted(name for name in sys.modules))
"""


def test_importing_the_room_is_quick_and_light():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    ratio, modules = done.stdout.splitlines()
    assert float(ratio) < 1  # of what pandas and scipy.optimize take
    heavy = {"torch", "hydra", "rich", "matplotlib.pyplot", "scipy.stats", "matplotlib", "jinja2"}
    assert heavy.isdisjoint(modules.split())
