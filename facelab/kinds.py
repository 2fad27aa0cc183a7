"""Values of a configuration are of the kind that whoever takes them says."""

from collections.abc import Iterator, Mapping, Sequence
from pydoc import locate
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["check_kind", "check_kinds"]


def check_kinds(tree: Mapping[str, Any], prefix: str = "") -> None:
    """Compares the values of a configuration with what the constructors say they take.

    Only plain kinds are compared (numbers, words, true and false, null, and lists of them): what else there is, a
    constructor judges for itself.

    Args:
        tree: plain, resolved values.
        prefix: the tree's own key, with a dot behind it.

    Raises:
        ValueError: a value is of another kind; the key is named.
    """
    kinds = _parameters(tree.get("_target_"))
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if get_origin(kinds.get(name)) is Mapping:
                for key, item in value.items():
                    check_kind(f"{prefix}{name}.{key}", item, get_args(kinds[name])[1])
            check_kinds(value, f"{prefix}{name}.")
        elif name in kinds:
            check_kind(f"{prefix}{name}", value, kinds[name])


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Refuses a value of another kind; a whole number may stand for a float, a bool for no number."""
    kinds = tuple(_plain(kind))
    if kinds and not any(_fits(value, one) for one in kinds):
        names = " or ".join(map(_spoken, kinds))
        raise ValueError(f"{name} is {value!r}: give a value of type {names}")


def _parameters(target: Any) -> dict[str, Any]:
    """What a constructor or function says of its parameters; nothing where that cannot be told."""
    try:
        found: Any = locate(target) if isinstance(target, str) else None
        return get_type_hints(found.__init__ if isinstance(found, type) else found)  # type: ignore[misc]
    except Exception:  # it cannot be imported, or its annotations mean nothing: whoever builds it will say so
        return {}


def _plain(kind: Any) -> Iterator[Any]:
    """The members of a union where all of them are plain kinds or lists of them; nothing otherwise."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    simple = (int, float, str, bool, NoneType)
    if all(member in simple or (_is_list(member) and get_args(member)[0] in simple) for member in members):
        yield from members


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (Sequence, list) and len(get_args(kind)) == 1


def _fits(value: Any, kind: Any) -> bool:
    if _is_list(kind):
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _spoken(kind: Any) -> str:
    if _is_list(kind):
        return f"list of {get_args(kind)[0].__name__}"
    return "null" if kind is NoneType else kind.__name__
