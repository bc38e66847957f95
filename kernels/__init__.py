"""The engine's numerical ops, one folder for each.  Canonical import name: ``activefreq_engine.kernels``.

Each op folder holds the public function (``__init__.py``), its definition (``reference.py``) and, where one
exists, a GPU implementation that is imported only when it runs.
"""

if __name__ == "kernels":
    # Reached through a checkout root on sys.path (working directory, a test runner's root) and not through the
    # installed package.  Answer with the canonical modules, so that nothing is imported twice: a second copy
    # would register the same torch ops again.
    import importlib
    import importlib.abc
    import importlib.util
    import sys

    class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            return importlib.util.spec_from_loader(name, self) if name.startswith("kernels.") else None

        def create_module(self, spec):
            module = importlib.import_module("activefreq_engine." + spec.name)
            self._spec = module.__spec__
            return module

        def exec_module(self, module):
            module.__spec__ = self._spec  # the import system overwrote it with the alias spec

    sys.meta_path.insert(0, _Alias())
    sys.modules[__name__] = importlib.import_module("activefreq_engine.kernels")
