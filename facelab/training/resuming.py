"""`resume=PATH`: a run that goes on with the choices that its own folder holds; without torch, so it costs nothing.

The folder's config.yaml takes the place of conf/config.yaml: Hydra reads it as the primary configuration, and what is
typed beside `resume=` changes single keys of it. Whether that is still the same experiment, or a longer one, the run
directory decides. A folder may come from a stranger: its configuration is checked before Hydra sees it, since `hydra`
in it could run code before anything else does, `_target_` names what is called, and `${…}` could ask for anything.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from facelab.configuration import configuration_folder
from facelab.door import in_quotes as quoted
from facelab.training.sameness import LATER, is_free
from facelab.trusted import parse, safe_run

NAME = "resumed_run"  # of the configuration, for Hydra
_STAYS = ("out", "name", "job")  # where a run lies
_GROUP = re.compile(r"[~+]*([A-Za-z_][\w/]*)(?:@([\w.]+))?=")


def configuration_of(arguments: Sequence[str]) -> str | None:
    """Where `resume=PATH` was typed, makes that run's configuration known to Hydra, and gives its name.

    Args:
        arguments: what was typed, as words.

    Raises:
        ValueError: it cannot go on so; says why.
        FileNotFoundError: there is no such run.
    """
    typed = [word for word in arguments if word.startswith("resume=")]
    given = [OverridesParser.create().parse_override(word).value() for word in typed]
    if not given or given[-1] in ("", None):
        return None
    if any(word in ("-m", "--multirun") for word in arguments):
        raise ValueError("resume= goes on with one run, and -m begins several: leave one of the two out")
    path = str(given[-1])
    where = folder_of(path)
    config = checked(where)
    stays = [word for word in arguments if word.startswith(tuple(f"{key}=" for key in _STAYS))]
    if stays:
        raise ValueError(f"resume={path}: a run goes on where it lies: leave out {stays[0]}")
    choices = _free_groups(arguments, config, path)
    hydra = yaml.safe_load((configuration_folder() / "config.yaml").read_text(encoding="utf-8"))["hydra"]
    hydra["run"] = {"dir": _literal(str(where))}
    node = {"defaults": ["_self_", *choices], **_completed(config), "hydra": hydra}
    ConfigStore.instance().store(NAME, node, provider="facelab")
    return NAME


def in_quotes(arguments: Sequence[str]) -> list[str]:
    """What was typed, with the path of `resume=` in quotes: a job's name has commas and signs of equality in it."""
    return [
        f"resume={quoted(word.removeprefix('resume='))}" if re.match(r"resume=(?!null$)[^'\"]", word) else word
        for word in arguments
    ]


def folder_of(given: str) -> Path:
    """The run's folder: what was given, or the one whose checkpoint that is.

    Raises:
        ValueError: it is a checkpoint that a run does not go on from.
        FileNotFoundError: no run is there.
    """
    path = Path(given).expanduser()
    if path.is_file() and path.parent.name == "checkpoints":
        if path.name != "last.ckpt":
            raise ValueError(
                f"resume={given}: a run goes on from its last.ckpt, and from previous.ckpt where that is damaged: give "
                f"its folder, resume={path.parent.parent}"
            )
        path = path.parent.parent
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(
            f"resume={given}: no run is there (a folder with a config.yaml); give the run directory, which the run "
            "said at its beginning"
        )
    return path


def checked(where: Path) -> dict[str, Any]:
    """The configuration of a run, which calls nothing that conf/ does not offer.

    Raises:
        ValueError: it is no configuration, or not one of a training; or it asks for something else.
    """
    file = where / "config.yaml"
    try:
        tree = parse(file.read_text(encoding="utf-8"))
    except ValueError:  # of the bytes too
        tree = None
    if not isinstance(tree, dict) or not {"trainer", "optimizer", "loss", "backbone", "data"} <= tree.keys():
        raise ValueError(f"{file} is not the configuration of a training: give the folder of a run of facelab.train")
    return safe_run({key: value for key, value in tree.items() if key != "defaults"}, str(file))


def _free_groups(arguments: Sequence[str], config: dict[str, Any], given: str) -> list[dict[str, None]]:
    """Whole options that were typed and leave the run the same, such as logger=csv, for Hydra's list of defaults.

    The run's own is taken out of `config`.
    """
    choices: list[dict[str, None]] = []
    for word in arguments:
        found = _GROUP.match(word)
        if found is None or not (configuration_folder() / found[1]).is_dir():
            continue
        key = (found[2] or found[1]).replace("/", ".")
        if not is_free(key):
            raise ValueError(
                f"resume={given}: {word} would make it another experiment; a run goes on with its own choices: leave "
                "it out, or begin another run"
            )
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node.pop(name, None)
        choices.append({word.partition("=")[0]: None})
    return choices


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """With the options that are younger than the run, at what leaves it what it was."""
    trainer = yaml.safe_load((configuration_folder() / "trainer" / "default.yaml").read_text(encoding="utf-8"))
    config["trainer"] = {**{k: v for k, v in trainer.items() if is_free(f"trainer.{k}")}, **config["trainer"]}
    for key, value in LATER.items():
        *groups, name = key.split(".")
        node: Any = config
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.setdefault(name, value)
    return {**config, "resume": None}


def _literal(text: str) -> str:
    """As OmegaConf has it, where a path has a `${` in it."""
    return text.replace("${", "\\${")
