"""In which order an image passes through a network of timm: its parameters in groups, and its modules by group."""

import re
from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

MATCHED_LATE = (99999,)  # timm's sign for what comes behind the last block and counts as part of it
LATE = re.compile(r"head|norm|fc|classifier")  # begins timm's names of what follows the last stage


def group(body: nn.Module) -> tuple[dict[Tensor, int], int]:
    """Parameter → the number of its group, in the order of the network, and the number of what follows them all."""
    named = dict(body.named_parameters())
    matcher: Any = {}
    try:
        matcher = _without_late(body.group_matcher(coarse=True))  # type: ignore[operator]
        found = group_parameters(body, matcher, reverse=True)
    except Exception:  # some have no groups, or none that are coarse; and each says so in its own way
        found = {}
    last = max(found.values(), default=0) + 1
    if isinstance(matcher, dict):
        patterns = [pattern for several in matcher.values() for pattern, _ in several]
        # Timm gives all names that match nothing one group, the last: heads and their norms are named so.
        unmatched = {found[name] for name in found if not any(re.match(pattern, name) for pattern in patterns)}
        last = min(unmatched, default=last)
    if len(set(found.values()) - {last}) < 3:  # no stages to speak of
        found, last = _group_by_children(body)
    return {named[name]: group for name, group in found.items()}, last


def _group_by_children(body: nn.Module) -> tuple[dict[str, int], int]:
    """Names of parameters → groups, and the last: what a network consists of; rows of modules one by one."""
    places: dict[str, int] = {}
    found = {}
    for name, _ in body.named_parameters():
        child, *rest = name.split(".")
        if not LATE.match(child):
            row = isinstance(getattr(body, child), nn.Sequential | nn.ModuleList)
            found[name] = places.setdefault(f"{child}.{rest[0]}" if row else child, len(places))
    return {name: found.get(name, len(places)) for name, _ in body.named_parameters()}, len(places)


def _without_late(matcher: Any) -> Any:
    """A matcher's patterns, (pattern, suffix) each, without those of what counts as part of the last block."""
    if not isinstance(matcher, dict):
        return matcher
    several = {key: given if isinstance(given, list | tuple) else [(given, None)] for key, given in matcher.items()}
    return {key: [one for one in pairs if one[0] and one[1] != MATCHED_LATE] for key, pairs in several.items()}


def units_of(module: nn.Module, groups: dict[Tensor, int]) -> Iterator[nn.Module | nn.Parameter]:
    """The largest parts that are of one group each; of a row of modules, its modules."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        whole = not isinstance(child, nn.Sequential | nn.ModuleList)
        inside = {groups[parameter] for parameter in child.parameters()}
        if len(inside) == 1 and whole:
            yield child
        elif inside:
            yield from units_of(child, groups)
