"""A model as a graph, by torch.export; and which layer it was, where that cannot be done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def to_program(model: nn.Module, example: Tensor, batch: int | None) -> Any:
    """The graph of a model in eval mode.

    Args:
        model: one tensor in, one out.
        example: such a tensor.
        batch: the number of images that it will always take; None: any number.

    Raises:
        ValueError: it cannot be written as a graph; its layer is named.
    """
    first = {0: torch.export.Dim("batch", min=1)} if batch is None else None
    with torch.no_grad(), layers_named(model, "a graph"):
        return torch.export.export(model, (example,), dynamic_shapes=(first,), strict=False)


@contextmanager
def layers_named(model: nn.Module, what: str) -> Iterator[None]:
    """Says in which layer an attempt to run or to trace a model ended.

    Raises:
        ValueError: instead of whatever ended it.
    """
    inside: list[str] = []
    handles: list[Any] = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f"the layer {inside[-1]}" if inside else "the model"
        raise ValueError(f"{where} cannot be made into {what}: {reason}; give another format=") from error
    finally:
        for handle in handles:
            handle.remove()


def layer_of(node: Any) -> str:
    """The module that a node of a graph comes from, as the model names it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""
