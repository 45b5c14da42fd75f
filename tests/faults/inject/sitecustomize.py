"""Runs at the start of every Python process of the rig: patches what FAULTS_PLANT names.

The product has no branch for this: modules are changed from here, right after their import. An
import hook does it, because importing them now would be too early (see worker/__init__.py).
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

Patch = Callable[[ModuleType], None]


class _PatchingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, patches: Sequence[Patch]) -> None:
        self._loader = loader
        self._patches = patches

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for patch in self._patches:
            patch(module)


class _PatchingFinder(importlib.abc.MetaPathFinder):
    def __init__(self, patches: dict[str, list[Patch]]) -> None:
        self._patches = patches
        self._asked: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package = f"{name.partition('.')[0]}.*"
        # What is for a whole package comes last: it sees what the others planted.
        patches = [*self._patches.get(name, ()), *self._patches.get(package, ())]
        if not patches or name in self._asked:
            return None
        # The name is noted, so this asks the other finders.
        self._asked.add(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, patches)
        return spec


def _install() -> None:
    names = os.environ.get("FAULTS_PLANT", "").split()
    if not names:
        return
    import insides  # type: ignore[import-not-found]  # noqa: PLC0415  # beside this file
    import plants  # type: ignore[import-not-found]  # noqa: PLC0415  # beside this file

    known = plants.PLANTS | insides.PLANTS
    patches: dict[str, list[Patch]] = {}
    for name in names:
        for module, patch in known[name.partition("=")[0]](name.partition("=")[2]):
            patches.setdefault(module, []).append(patch)
    sys.meta_path.insert(0, _PatchingFinder(patches))


_install()
