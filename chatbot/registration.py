"""Makes `AutoModelForCausalLM.from_pretrained` know our model after `import chatbot`, without importing torch for it.

`import chatbot` must stay cheap, because the commands' --help and the text modules import it. So the model registers
itself when transformers' auto classes are first imported, or at once when they already are.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

_AUTO = "transformers.models.auto.modeling_auto"


class _RegisterAfterImport(MetaPathFinder):
    """Finds `_AUTO` once, as everybody else does, and imports our model after it."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and isinstance(spec.loader, Loader):
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                importlib.import_module("chatbot.model")

            spec.loader.exec_module = exec_module
        return spec


def register_lazily() -> None:
    """Arranges the registration; call once, from the package."""
    if _AUTO in sys.modules:
        importlib.import_module("chatbot.model")
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())
