"""Makes transformers' auto classes know our model after `import chatbot`, without importing torch for it.

`import chatbot` must stay cheap, because the commands' --help and the text modules import it. So the model registers
itself when the auto classes are first imported, or at once when they already are.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

_REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "chatbot.model.config",
    "transformers.models.auto.modeling_auto": "chatbot.model.network",
}


class _RegisterAfterImport(MetaPathFinder):
    """Finds the auto modules as everybody else does, and imports the module of ours that registers after them."""

    def __init__(self):
        self.waiting = dict(_REGISTERED_BY)

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        ours = self.waiting.pop(fullname, None)
        if ours is None:
            return None
        spec = find_spec(fullname)
        if spec is not None and isinstance(spec.loader, Loader):
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                importlib.import_module(ours)

            spec.loader.exec_module = exec_module
        return spec


def register_lazily() -> None:
    """Arranges the registration; call once, from the package."""
    sys.meta_path.insert(0, _RegisterAfterImport())
    for theirs, ours in _REGISTERED_BY.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
