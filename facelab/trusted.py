"""What a file says that comes from elsewhere, checked before any of it is used: it can name things, and call none.

A configuration calls whatever its `_target_` names, and `${…}` in it asks the machine for things, or makes new nodes.
In conf/, and on the command line, both are the user's own hand. What comes with a checkpoint or with a run directory
may be a stranger's: it must be plain values, its `hydra` node is dropped, and what is made of it must be named by a
file of the user's own configuration: by exactly that name, whatever it begins with. So a class of one's own
(docs/extend.md) is there for one's own checkpoints, as soon as a file of its group says it.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from facelab.configuration import configuration_folder

__all__ = ["configuration", "offered", "parse", "safe", "safe_run", "values"]

TARGET = "_target_"
_MOST = 100_000  # values; a run has some three hundred, and one of many sets some more
_DEEPEST = 50  # levels; a run has seven
_SPECIAL = re.compile(r"_\w+_")  # keys with which Hydra makes things: _target_, _args_, _partial_ …


def parse(text: str) -> Any:
    """The plain values of a config.yaml, without its `hydra` node.

    Raises:
        ValueError: it is no YAML of plain values, or holds more than a configuration can (aliases of aliases, say).
    """
    import yaml

    try:
        tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C: a tenth of the time
    except Exception as error:  # each of YAML's types has its own way to be malformed
        raise ValueError(f"is no plain YAML ({_first_line(error)})") from error
    _measure(tree)
    return {key: value for key, value in tree.items() if key != "hydra"} if isinstance(tree, dict) else tree


def configuration(tree: Any, where: str) -> dict[str, Any]:
    """The configuration that comes with a file, without its `hydra` node.

    Args:
        tree: what the file says.
        where: the file, for messages, as it was given.

    Raises:
        ValueError: it is no mapping, is larger than a configuration can be, or has a value `${…}`.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} has no configuration: get the file again")
    try:
        _measure(tree)
    except ValueError as error:
        raise ValueError(f"{where}: its configuration {error}; get the file again") from None
    kept = {key: value for key, value in tree.items() if key != "hydra"}
    asking = next(((key, value) for key, value in _leaves(kept) if isinstance(value, str) and "${" in value), None)
    if asking is not None:
        raise ValueError(
            f"{where}: its {asking[0]} is {asking[1][:80]!r}; what comes with a file is plain values, and cannot ask "
            "for others: get the file from a source that you trust"
        )
    return kept


def values(found: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Values out of a file that stand in for those of one's own: nothing is made of them.

    Raises:
        ValueError: they hold a node that would be.
    """
    for key, _ in _keys(found):
        if _SPECIAL.fullmatch(key.rpartition(".")[2]):
            raise ValueError(
                f"{where}: its {key} would call something, where a plain value belongs: get the file from a source "
                "that you trust"
            )
    return found


def offered(group: str) -> frozenset[str]:
    """All that the files of conf/<group>/ name, of one's own configuration folders too; '' stands for all groups."""
    return _offered(tuple(_folders()), group)


@cache
def _offered(folders: tuple[Path, ...], group: str) -> frozenset[str]:
    return frozenset(
        value
        for folder in folders
        for file in sorted((folder / group).glob("*.yaml") if group else folder.rglob("*.yaml"))
        for key, value in _keys(parse(file.read_text(encoding="utf-8")))
        if key.rpartition(".")[2] == TARGET and isinstance(value, str)
    )


def safe(key: str, node: Any, group: str, path: Path) -> Any:
    """A node out of a checkpoint, to be instantiated: what it calls must be a choice of conf/<group>/.

    Args:
        key: where the configuration names the file, for messages.
        node: what the checkpoint says.
        group: of which group.
        path: the file.

    Returns:
        A DictConfig.

    Raises:
        ValueError: it would call something else, or in another way.
    """
    from omegaconf import OmegaConf

    plain = configuration(node, f"{key}={path}")
    special = [(name.rpartition(".")[2], value) for name, value in _keys(plain)]
    known = offered(group)
    strange = sorted(
        str(value) for name, value in special if name == TARGET and not (isinstance(value, str) and value in known)
    )
    if strange:
        raise ValueError(
            f"{key}={path} asks for {strange[0]} as its {group}, which no file of conf/{group} offers, and which "
            "is not called on a checkpoint's word alone: add such a file if you trust it"
        )
    others = sorted({name for name, _ in special if _SPECIAL.fullmatch(name) and name != TARGET})
    if others:
        raise ValueError(
            f"{key}={path}: its {group} has {others[0]}, and no checkpoint of facelab says how something is called: "
            "get the file from a source that you trust"
        )
    return OmegaConf.create(plain)


def safe_run(tree: Any, where: str) -> dict[str, Any]:
    """The configuration of a whole run: what it calls must be a choice of conf/, whichever group's.

    Args:
        tree: what the file says.
        where: the file, for messages.

    Raises:
        ValueError: it would call something else, or in another way, or is none.
    """
    config = configuration(tree, where)
    known = offered("")
    for key, value in _keys(config):
        name = key.rpartition(".")[2]
        if name == TARGET and not (isinstance(value, str) and value in known):
            raise ValueError(f"{where} asks for {value} ({key}), which no file of conf/ offers: it is not called")
        if name != TARGET and _SPECIAL.fullmatch(name) and (name, value) != ("_partial_", True):  # of distill=sum
            raise ValueError(f"{where} has {key}, and no run of facelab says how something is called: mend it")
    return config


def _folders() -> list[Path]:
    """conf/, and what the user has added to Hydra's search path (`--config-dir`, `hydra.searchpath`)."""
    found = [configuration_folder()]
    module = sys.modules.get("hydra.core.hydra_config")
    if module is not None and module.HydraConfig.initialized():
        sources = module.HydraConfig.get().runtime.config_sources
        found += [Path(source.path) for source in sources if source.schema == "file"]
    return found


def _measure(tree: Any) -> None:
    """Refuses what is too large, or leads back to itself, before anybody walks over it."""
    stack, seen = [(tree, 0)], 0
    while stack:
        value, depth = stack.pop()
        seen += 1
        if seen > _MOST or depth > _DEEPEST:
            raise ValueError(f"holds more than {_MOST:,} values, or more than {_DEEPEST} levels")
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
        if len(inner) > _MOST:
            raise ValueError(f"holds more than {_MOST:,} values")
        stack += [(one, depth + 1) for one in inner]


def _keys(tree: Any, front: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, those inside lists too, and what stands there."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{front}{key}"
            yield name, value
            yield from _keys(value, f"{name}.")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from _keys(value, f"{front}{number}.")


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{name}.{number}")
    else:
        yield name, tree


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
