import subprocess
import sys

PROBE = """
import sys, time
import pandas, scipy.optimize
start = time.perf_counter()
import analysis
print(time.perf_counter() - start)
print(*sorted(name for name in sys.modules))
"""


def test_importing_the_room_is_quick_and_light():
    answers = [
        subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    ]
    seconds, modules = answers[0].splitlines()
    assert float(seconds) < 0.5
    heavy = {"torch", "hydra", "rich", "matplotlib.pyplot", "scipy.stats", "matplotlib", "jinja2"}
    assert heavy.isdisjoint(modules.split())
