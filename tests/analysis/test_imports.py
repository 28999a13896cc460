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


PUBLIC = """
import importlib, pkgutil, types
import analysis
names = [item.name for item in pkgutil.walk_packages(analysis.__path__, "analysis.")]
for name in names:
    importlib.import_module(name)
print(len(names))
print(*(name for name in analysis.__all__ if isinstance(getattr(analysis, name), types.ModuleType)))
"""


def test_sub_packages_do_not_shadow_the_functions_of_their_names():
    """`analysis.isoflop`, `compare` and `report` are functions, whichever modules are imported later."""
    done = subprocess.run([sys.executable, "-c", PUBLIC], capture_output=True, text=True, check=True)
    count, shadowed = done.stdout.split("\n")[:2]
    assert int(count) > 40 and shadowed == ""
