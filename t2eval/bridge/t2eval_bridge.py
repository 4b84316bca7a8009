"""The plug-in bridge: entry-point discovery for lm-eval releases that have none.

Releases of lm-eval after 0.4.13 read the entry-point groups `lm_eval.models` (name -> `module:Class`) and `lm_eval.tasks`
(name -> a package whose folder holds task YAMLs). Until then `t2eval_bridge.pth` calls `install` at interpreter start, and this
module does the same for both groups, for every plug-in that declares them. It costs an interpreter without lm-eval one import of
one small module, which is why it lies outside the package `t2eval` and imports nothing but `sys`.

The real module is always loaded first: a registration before `lm_eval.models` would hide the built-in models.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoints
    from typing import Any

MODELS = "lm_eval.models"
TASKS = "lm_eval.tasks.manager"
_MODEL_GROUP = "lm_eval.models"
_TASK_GROUP = "lm_eval.tasks"


class Finder:
    """A `sys.meta_path` finder for two modules: finds them as the others would, and acts after their code has run."""

    def __init__(self, models: "dict[str, str] | None" = None, folders: "Iterable[str] | None" = None) -> None:
        """`models` (name -> "module:Class") and `folders` add to the entry points: for a checkout that is not installed."""
        self.models = dict(models or {})
        self.folders = list(folders or [])

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in (MODELS, TASKS):
            return None
        for finder in sys.meta_path:
            find = None if isinstance(finder, Finder) else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    self._act_after(spec.loader, name)
                return spec
        return None

    def _act_after(self, loader: "Any", name: str) -> None:
        run = loader.exec_module

        def exec_module(module: "Any") -> None:
            run(module)
            try:
                if any("t2-" in word for word in sys.argv[1:]):
                    from t2eval.models.launch import explain_typos

                    explain_typos()
                if name == MODELS:
                    self._register_models()
                else:
                    self._widen_tasks(module)
            except Exception as error:  # noqa: BLE001 - lm-eval itself must go on working, whatever a plug-in got wrong
                print(f"t2eval: lm-eval plug-ins are not active in {name}: {error!r}. Try `t2 doctor`.", file=sys.stderr)

        loader.exec_module = exec_module

    def _register_models(self) -> None:
        from lm_eval.api.registry import model_registry

        found = {entry.name: entry.value for entry in _entry_points(_MODEL_GROUP)}
        for name, value in {**self.models, **found}.items():
            # As a string: an EntryPoint object collides with @register_model on the class that it names.
            if name not in model_registry:
                model_registry.register(name, target=value.replace(" ", ""))

    def _widen_tasks(self, module: "Any") -> None:
        manager = module.TaskManager
        if _discovers_itself(module):
            return
        construct = manager.__init__

        def __init__(self_: "Any", *args: "Any", **kwargs: "Any") -> None:
            import functools
            import inspect

            bound = inspect.signature(functools.partial(construct, self_)).bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments["include_path"]
            if not bound.arguments["include_defaults"]:
                construct(self_, *args, **kwargs)
                return
            theirs = [] if not given else list(given) if isinstance(given, (list, tuple)) else [given]
            bound.arguments["include_path"] = [*_new_folders(self.task_folders(), theirs), *theirs] or None
            construct(self_, *bound.args, **bound.kwargs)
            self_.include_path = given

        __init__.__doc__ = construct.__doc__
        manager.__init__ = __init__

    def task_folders(self) -> "list[str]":
        """The folders of the second group's packages, in the order of their names."""
        from importlib.util import find_spec

        folders: list[str] = []
        for entry in sorted(_entry_points(_TASK_GROUP), key=lambda entry: entry.name):
            try:
                spec = find_spec(entry.module)
            except ImportError as error:
                print(f"t2eval: task plug-in {entry.name!r} is skipped: {error}", file=sys.stderr)
                continue
            if spec is None or not spec.submodule_search_locations:
                print(f"t2eval: task plug-in {entry.name!r} is skipped: {entry.value!r} is not a package.", file=sys.stderr)
                continue
            folders.extend(_new_folders(spec.submodule_search_locations, folders))
        return folders + _new_folders(self.folders, folders)


def _discovers_itself(module: "Any") -> bool:
    """Whether this lm-eval's task manager reads entry points by itself."""
    loader = module.__spec__.loader
    source = loader.get_source(module.__name__) if hasattr(loader, "get_source") else None
    return "entry_point" in (source or "") or any("entry_point" in name or "plugin" in name for name in vars(module))


def _entry_points(group: str) -> "EntryPoints":
    from importlib.metadata import entry_points

    return entry_points(group=group)


def _new_folders(folders: "Iterable[Any]", known: "Iterable[Any]") -> "list[Any]":
    """Those of `folders` that `known` does not hold yet, under whatever name: lm-eval warns of every task that it sees twice."""
    import os

    seen = {os.path.realpath(folder) for folder in known}
    return [folder for folder in folders if os.path.realpath(folder) not in seen]


def install(models: "dict[str, str] | None" = None, folders: "Iterable[str] | None" = None) -> None:
    """Put the finder at the front of `sys.meta_path`, once.

    Args:
        models: more model classes than the entry points name, as name -> "module:Class".
        folders: more folders with task YAMLs.
    """
    for finder in sys.meta_path:
        if isinstance(finder, Finder):
            finder.models.update(models or {})
            finder.folders.extend(folder for folder in folders or [] if folder not in finder.folders)
            return
    sys.meta_path.insert(0, Finder(models, folders))


def installed() -> bool:
    """Whether the finder is in place."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)
