"""Registration of our model with transformers' auto classes after `import chatbot`, without importing torch.

`import chatbot` must stay cheap, because the --help of every command and the text modules import it. Therefore the
model is registered when the auto classes are first imported, or at once if they already are.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "chatbot.model.config",
    "transformers.models.auto.modeling_auto": "chatbot.model.network",
}


class _RegisterAfterImport(MetaPathFinder):
    """Import hook that imports our registering module right after the auto module that it registers with."""

    def __init__(self) -> None:
        self.waiting = dict(_REGISTERED_BY)

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        registering_module = self.waiting.pop(fullname, None)
        if registering_module is None:
            return None
        spec = find_spec(fullname)  # the other finders; this one no longer answers for the name
        if spec is not None and isinstance(spec.loader, Loader):
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(registering_module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader alone
        return spec


def register_lazily() -> None:
    """Install the import hook, and register at once with auto modules that are already imported. Call it once."""
    sys.meta_path.insert(0, _RegisterAfterImport())
    for auto_module, registering_module in _REGISTERED_BY.items():
        if auto_module in sys.modules:
            importlib.import_module(registering_module)
