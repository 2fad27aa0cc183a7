"""What must not be written down: keys and passwords. A record is shown to others, and so is a command line.

They belong into the environment (WANDB_API_KEY), or into the file that `wandb login` writes; where one is found on a
command line or in a configuration, it is refused before anything is kept of it, and no message repeats it.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["refuse_on_command_line", "refuse_values", "without_secrets"]

# How the names of keys and of variables end that hold secrets; `tokens` of a transformer are none.
_NAME = re.compile(r"(?:.*[._/@])?(?:\w*_)?(?:api_?key|secret_?key|access_?key|token|secret|password|passwd)", re.I)
_ASKED = re.compile(r"oc\.env:\s*['\"]?([A-Za-z0-9_]+)")
_SHORTEST = 8  # characters; what is shorter stands in many words by chance
_HELP = "set it in the environment (WANDB_API_KEY), or use `wandb login`"


def refuse_on_command_line(words: Iterable[str]) -> None:
    """Refuses `logger.api_key=…`, and whatever repeats a secret of the environment.

    Raises:
        ValueError: the key is named, not its value.
    """
    for word in words:
        key = word.partition("=")[0]
        name = key.lstrip("+~-")
        asked = any(_NAME.fullmatch(variable) for variable in _ASKED.findall(word))
        if ("=" in word and _NAME.fullmatch(name)) or asked or any(secret in word for secret in _in_environment()):
            shown = without_secrets(name) if "=" in word else "a word of the command"
            raise ValueError(f"{shown} is a secret, and a command line is read by others and recorded: {_HELP}")


def refuse_values(config: Mapping[str, Any]) -> None:
    """Refuses a configuration that holds a secret, before it becomes a record.

    Raises:
        ValueError: the key is named, not its value.
    """
    known = _in_environment()
    for key, value in _leaves(config):
        named = isinstance(value, str) and value and _NAME.fullmatch(key)
        if named or (isinstance(value, str) and any(secret in value for secret in known)):
            raise ValueError(f"{key} is a secret, which would be written into the record: take it out, and {_HELP}")


def without_secrets(text: str) -> str:
    """A text in which secrets of the environment, and values of keys with such names, have become `***`."""
    for secret in _in_environment():
        text = text.replace(secret, "***")

    def hide(found: re.Match[str]) -> str:
        return f"{found[1]}=***" if _NAME.fullmatch(found[1].lstrip("+~-")) else found[0]

    return re.sub(r"(?<!\S)([^\s=]+)=(\S+)", hide, text)


def _in_environment() -> Sequence[str]:
    """Values of the environment's variables with names of secrets, the longest first."""
    found = {value for name, value in os.environ.items() if _NAME.fullmatch(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value, name)
    else:
        yield name, tree
