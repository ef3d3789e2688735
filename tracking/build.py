"""Configuration nodes become objects: `_target_` may name a class of ours or of a few trusted packages, nothing else.

Hydra's own `instantiate` calls whatever a dotted path reaches, so a configuration could run `os.system`. Here the path
must be `module.Class`, both public, and the class's own `__module__` must lie in `ROOTS`, wherever it was found
(design contract 7).
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from tracking.errors import UsageError
from tracking.extras import installed_by

ROOTS = (
    "datamodules",
    "lightning_modules",
    "federated",
    "tracking",
    "torch.optim",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
)
_factories: set[Callable] = set()


def factory(function: Callable) -> Callable:
    """Allow a function as `_target_` (used as a decorator or as a call); its own module must lie in `ROOTS` too."""
    _factories.add(function)
    return function


def build(node: Any, **kwargs: Any) -> Any:
    """The object that `node` describes; `kwargs` are further arguments of the outermost target and win over the node's.

    node: a configuration node or plain containers. A mapping with `_target_: module.Class` becomes a call of the class
    with the other entries, built first, as keyword arguments, or with `_partial_: true` a `functools.partial` of it;
    any other mapping becomes a dict, a list a list, a value stays.

    Raises UsageError for a target that is not allowed or not there, and for arguments that it does not take or lacks.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    if kwargs and not (isinstance(node, Mapping) and "_target_" in node):
        raise UsageError(f"expected a configuration with a _target_ for {', '.join(kwargs)}, found {node!r}")
    return _built(node, kwargs)


def _built(node: Any, ready: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """`ready`: arguments that are objects already and must not be looked into."""
    if isinstance(node, list):
        return [_built(value) for value in node]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: _built(value) for key, value in node.items()}
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise UsageError(f"{node['_target_']}: _partial_ is true or false, found {partial!r}")
    target = resolve(node["_target_"])
    described = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", *ready)}
    arguments = {key: _built(value) for key, value in described.items()} | dict(ready)
    _check_arguments(node["_target_"], target, arguments, partial)
    return functools.partial(target, **arguments) if partial else target(**arguments)


def resolve(target: Any) -> Callable:
    """The class or registered factory called `target`; raises UsageError for everything else."""
    module_name, _, name = str(target).rpartition(".")
    # Before anything is imported: importing a module runs it.
    if not isinstance(target, str) or not _within_roots(module_name):
        raise UsageError(f"_target_ {target!r} is not allowed: expected module.Class in {', '.join(ROOTS)}")
    if any(part.startswith("_") for part in target.split(".")):
        raise UsageError(f"_target_ {target!r} is not allowed: it goes through a private name")
    found = getattr(_imported(module_name, target), name, None)
    if found is None:
        raise UsageError(f"_target_ {target!r} does not exist: {module_name} holds no {name}")
    allowed = inspect.isclass(found) or (inspect.isfunction(found) and found in _factories)
    if not allowed or not _within_roots(found.__module__):
        raise UsageError(f"_target_ {target!r} is not allowed: expected a class of {', '.join(ROOTS)}")
    return found


def _within_roots(module_name: str) -> bool:
    return any(module_name == root or module_name.startswith(f"{root}.") for root in ROOTS)


def _imported(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise UsageError(f"_target_ {target!r} does not exist: there is no module {missing}") from error
        raise UsageError(f"_target_ {target!r} needs the package {missing!r}: {installed_by(missing)}") from error


def _check_arguments(name: str, target: Callable, arguments: dict[str, Any], partial: bool) -> None:
    """A wrong key is the commonest slip in a configuration: name it, and the keys there are."""
    parameters = inspect.signature(target).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    unknown = [str(key) for key in arguments if key not in named]
    private = [key for key in unknown if key.startswith("_")]
    if private or (unknown and not takes_any):
        wrong = ", ".join(repr(key) for key in (private or unknown))
        raise UsageError(f"{name} does not take {wrong}; it takes {', '.join(named) or 'nothing'}")
    needed = [p.name for p in parameters if p.name in named and p.default is p.empty]
    lacking = [key for key in needed if key not in arguments]
    if lacking and not partial:
        raise UsageError(f"{name} needs {', '.join(map(repr, lacking))}; it takes {', '.join(named)}")
