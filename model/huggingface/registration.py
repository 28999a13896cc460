"""Registration with transformers, put off until it is imported: this module imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from model.huggingface.configuration import LoopscaleConfig

    AutoConfig.register(LoopscaleConfig.model_type, LoopscaleConfig, exist_ok=True)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from model.huggingface.configuration import LoopscaleConfig
    from model.huggingface.modeling import LoopscaleForCausalLM

    AutoModelForCausalLM.register(LoopscaleConfig, LoopscaleForCausalLM, exist_ok=True)


# What is done once a module of transformers has been executed.
_AFTER: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _AfterImport(MetaPathFinder):
    """Find those modules as Python does, and register when they have been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec, None for all other modules."""
        register = _AFTER.get(fullname)
        spec = None if register is None else PathFinder.find_spec(fullname, path, target)
        if register is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Make transformers' Auto classes know our models, now or as soon as they are imported."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    for name, register in _AFTER.items():
        if name in sys.modules:
            register()
