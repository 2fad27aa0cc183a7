"""What all doors share: where the configuration lies, a job's name, and errors as one line.

Nothing heavy is imported here: `--help` and `--cfg job` must answer at once.
"""

import difflib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

try:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.core.plugins import Plugins
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

    from facelab.configuration import configuration_folder
    from facelab.job import Job, writes
    from facelab.multirun import Failed, Look, Stopped, Sweep, swept_keys
    from facelab.secrecy import refuse_on_command_line
except KeyboardInterrupt:  # these take a third of a second, and nobody else is there yet to say it in one line
    print("facelab: interrupted; nothing was begun", file=sys.stderr)
    sys.exit(130)

__all__ = ["configuration_folder", "hand_on", "in_quotes", "open_door", "with_words"]

HYDRAS_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LONGEST_NAME = 120
_CHOICE = re.compile(r"(\+\+?|~)?[A-Za-z_][\w./@]*=|~[A-Za-z_]")  # how key=value begins
# Overrides that say where or how comfortably a job goes, not what it is; they do not name it.
NAMELESS = (
    *("out", "name", "job", "resume", "sweeps", "logger", "data.loader", "data/loader", "trainer.progress"),
    *("teacher", "tune"),
    *("batch_size", "accelerator", "check", "progress", "loader", "embeddings"),  # of an evaluation
)


_ABSENT = object()  # the value of a key that there is not


class _Usage(Exception):
    """What was typed is neither key=value nor a flag."""


def open_door(
    task: Callable[[DictConfig], Any],
    config_name: str,
    program: str,
    look: Callable[[DictConfig, Path], Look] | None = None,
    words: str | None = None,
    stored: Callable[[Sequence[str]], str | None] | None = None,
) -> None:
    """Composes the configuration from the command line and calls `task`; what is the user's to mend ends in one line.

    Args:
        task: gets the composed configuration.
        config_name: the primary file in conf/, without its suffix.
        program: the module that is run, for messages.
        look: of a job of several, (configuration, run directory) → what is known before it starts; it may refuse it.
        words: the key of the list that words without `=` go to, such as photographs; null: they are refused.
        stored: of what was typed → the name of a configuration that it has stored in place of the primary file; None:
            that file.
    """
    # Hydra's own one-line errors name neither the nearest option nor the mend; ours need the exceptions themselves.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    folder = str(configuration_folder())
    sys.argv[1:] = with_words(sys.argv[1:], words)
    sys.argv[1:] = [_quoted(_grouped(word, folder)) for word in sys.argv[1:]]
    explain = partial(_explain, folder=folder, config_name=config_name, program=program)
    job = Job(task, look, explain, program)
    try:
        _check_flags(program)
        refuse_on_command_line(sys.argv[1:])
        primary = (stored(sys.argv[1:]) if stored is not None else None) or config_name
        explain = job.explain = partial(_explain, folder=folder, config_name=primary, program=program)
        Plugins.instance().class_name_to_class[HYDRAS_SWEEPER] = Sweep
        hydra.main(version_base="1.3", config_path=folder, config_name=primary)(job)()
        if job.failed:
            raise job.failed[0]
    except Stopped as stopped:
        _end(str(stopped), 130)
    except KeyboardInterrupt:
        _end("interrupted before it began; nothing was changed by it", 130)
    except BrokenPipeError:  # `--help | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FACELAB_TRACEBACK"):
            raise
        line = str(error) if isinstance(error, Failed) else explain(error)
        if line is None:
            raise
        # Before it calls a job, Hydra makes its folder.
        if isinstance(error, OSError) and error.errno is not None and not job.reached:
            reason = f"cannot be made ({error.strerror}): give another place with out=FOLDER"
            line = f"run directory {error.filename} {reason}"
        if type(error).__name__ == "Interrupted":
            _end(line if writes() else "", 130)
        _end(line if type(error).__name__ != "Agreed" or writes() else "", 1)


def hand_on(function: str, config: DictConfig) -> Any:
    """A door's task: the choices as plain values to a function that is imported only now, `package.module.function`."""
    from hydra.utils import get_method

    choices = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return get_method(function)(choices)


def with_words(arguments: Sequence[str], key: str | None) -> list[str]:
    """Arguments in which `a.jpg b.jpg` has become `key=['a.jpg','b.jpg']`; flags, and what follows them, stay.

    A file or folder is one even where its name has a `=` in it, and so is a path that begins with no group's name.
    Without a key nothing changes.
    """
    if key is None:
        return list(arguments)
    parser = get_args_parser()

    def leave(message: str) -> NoReturn:
        raise _Usage(message)

    parser.error = leave  # type: ignore[method-assign]
    try:
        known = parser.parse_known_args([word for word in arguments if word != "--version"])[0].overrides
    except _Usage:  # of flags, which `_check_flags` refuses in its own words
        return list(arguments)
    plain = [word for word in known if not _CHOICE.match(word) or Path(word).exists() or _is_path(word)]
    kept = list(arguments)
    for word in plain:
        kept.remove(word)
    quoted = [in_quotes(word) for word in plain]
    listed = [f"{key}=[{','.join(quoted)}]"] if plain else []
    return listed + kept


def _is_path(word: str) -> bool:
    """Whether `runs/x/loss=a` can be no choice, since there is no group `runs`."""
    first, slash, _ = word.partition("=")[0].lstrip("+~").partition("/")
    return bool(slash) and not (configuration_folder() / first).is_dir()


def in_quotes(word: str) -> str:
    """As Hydra's grammar has it: backslashes count only in front of a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), word) + "'"


def _check_flags(program: str) -> None:
    """Refuses in our own words what Hydra's parser of flags would refuse with its usage."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise _Usage(f"{message}; `python -m {program} --help` lists the flags")

    parser.error = refuse  # type: ignore[method-assign]
    _, unknown = parser.parse_known_args([word for word in sys.argv[1:] if word != "--version"])
    if not unknown:
        return
    word = unknown[0]
    if not word.startswith("-"):
        raise _Usage(f"{word} stands behind a flag and choices before it: write all choices together, flags last")
    key, found, _ = word.lstrip("-").partition("=")
    if found:
        raise _Usage(f"{word} is no flag: choices are written without dashes, {word.lstrip('-')}")
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    near = _nearest(f"--{key}", flags)
    raise _Usage(f"{word} is no flag: {near}choices are written key=value, `python -m {program} --help` lists them")


def _grouped(word: str, folder: str) -> str:
    """`data.sampler=pk` as Hydra writes it, `data/sampler=pk`: where the key is a group inside a group.

    So are several options, for a multirun. What is no single word can be no option, and stays as it was typed.
    """
    key, _, value = word.partition("=")
    if re.fullmatch(r"\w+(\.\w+)+", key) and re.fullmatch(r"[\w-]+(,[\w-]+)*", value) and value != "null":
        group = key.replace(".", "/")
        if (Path(folder) / group).is_dir():
            return f"{group}={value}"
    return word


def _quoted(word: str) -> str:
    """A value that Hydra's grammar has no letters for (a path in Korean, with brackets, with an apostrophe) in quotes.

    Lists, mappings and what is already in quotes stay as they were typed, and so does all that can be read.
    """
    key, found, value = word.partition("=")
    if not found or word.startswith("-") or not value or value[0] in "[{'\"" or ("/" not in value and value.isascii()):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return word


def _end(line: str, code: int) -> NoReturn:
    if line:
        print(f"facelab: {line}", file=sys.stderr)
    sys.exit(code)


def _explain(error: Exception, folder: str, config_name: str, program: str) -> str | None:
    """One line for an error that the user can mend; None for a fault of ours, which keeps its traceback."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and option.startswith("submitit_"):  # on which slurm and local are built
            return "hydra/launcher=slurm and local need submitit, which is not installed: pip install 'facelab[slurm]'"
        near = _nearest(option, list(error.options or []))
        return f"{group or 'the configuration'} has no option {option!r}: {near}{_listed(error.options or [])}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override}: write key=value, in quotes where the value has brackets or blanks"
    if isinstance(error, (ConfigCompositionException, HydraException, OmegaConfBaseException)):
        return _explain_configuration(error, folder, config_name, program)
    if isinstance(error, OSError) and error.errno is not None:  # the system's own word, with which nobody has dealt
        what = error.filename or "a file"
        return f"{what}: {error.strerror}; put that right, and start the same command again"
    if type(error).__name__ == "Interrupted" or isinstance(error, (_Usage, ValueError, OSError)):
        return " ".join(str(error).split())
    return None


def _explain_configuration(error: BaseException, folder: str, config_name: str, program: str) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    root = chain[-1]
    if isinstance(root, (MissingMandatoryValue, InterpolationToMissingValueError)):
        # Of ${teacher}, what is missing is `teacher`, whichever key asks for it.
        asked = re.search(r"interpolation: Missing mandatory value: (\S+)", str(root))
        key = asked.group(1) if asked else getattr(root, "full_key", None) or str(root).rsplit(" ", 1)[-1]
        return f"{key} has no value, and there is no default for it: add {key}=… to the command"
    # What a constructor of ours refuses comes wrapped in Hydra's account of the call.
    if isinstance(root, (ValueError, OSError)) and not isinstance(root, OmegaConfBaseException):
        return " ".join(str(root).split())
    if isinstance(root, TypeError):
        what = re.search(r"full_key: (\S+)", str(error)) or re.search(r"call to target '([^']+)'", str(error))
        named = what.group(1) if what else "the configuration"
        return f"{named} has a value of the wrong kind ({root}): compare it with `python -m {program} --cfg job`"
    text = " ".join(str(root).split())
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", str(error) + " " + text)
    if unknown:
        key = getattr(root, "full_key", None) or unknown.group(1) or unknown.group(2)
        typed = [word.split("=", 1)[0] for word in sys.argv[1:] if "=" in word]
        key = next((word for word in typed if word.startswith(f"{key}.")), key)  # of a group that there is not
        known, chosen = _known_keys(folder, config_name, key)
        if any("=" not in word and word.removeprefix("~") == key for word in sys.argv[1:]) and key in known:
            return f"~{key} takes away what a run cannot do without: leave it in, or choose another option of it"
        return f"there is no key {key!r}{chosen}: {_nearest(key, known)}`python -m {program} --cfg job` shows them all"
    return text + "; `--help` lists the groups, `--cfg job` the keys"


def _nearest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    if not found:  # a key may be right but for its group: epochs → trainer.epochs
        found = [key for key in known if key.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:2]
    return f"did you mean {' or '.join(found)}? " if found else ""


def _listed(options: Sequence[str]) -> str:
    return f"There are {', '.join(sorted(options))}" if options else "There are no options"


def _known_keys(folder: str, config_name: str, key: str) -> tuple[list[str], str]:
    """The keys of the configuration with the options of this command line, and the option that decides about `key`."""
    words = [word for word in sys.argv[1:] if "=" in word and "," not in word]
    groups = [word for word in words if (Path(folder) / word.split("=", 1)[0]).is_dir()]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(folder, version_base="1.3"):
        try:
            composed = hydra.compose(config_name, overrides=groups)
        except ConfigCompositionException:  # a group that is another door's
            composed = hydra.compose(config_name)
    config = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(config, dict)
    chosen = [word for word in groups if word.startswith(key.split(".", 1)[0] + "=")]
    return list(_paths(config)), f" with {chosen[-1]}" if chosen and "." in key else ""


def _paths(tree: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


def _job_name(*, _root_: DictConfig) -> str:
    """The choices that differ from the defaults, in a fixed order: the same choices always give the same name.

    What a file of sweeps/ sweeps over is named with a default, too: it differs within the folder of that sweep.
    """
    config: Any = _root_.get("hydra") or HydraConfig.get()
    overrides = OverridesParser.create().parse_overrides(list(config.overrides.task))
    groups = set(config.runtime.choices)
    choices = [o for o in overrides if o.key_or_group in groups or (o.is_delete() and "." not in o.key_or_group)]
    swept = swept_keys(OmegaConf.select(config, "sweeper.params") or {})
    typed = {override.key_or_group for override in overrides}
    values = {key: _value(_root_, config, key) for key in sorted(swept - typed)}
    kept = [_named(_parsed(key, value)) for key, value in values.items() if value is not _ABSENT]
    for override in overrides:
        key = override.key_or_group
        if any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in NAMELESS):
            continue
        # Another option has other defaults: after optimizer=adamw, the poly schedule and SGD's rate are no defaults.
        before = [o for o in choices if o is not override and (override not in choices or _depth(o) < _depth(override))]
        if override.is_delete():
            kept.append(f"~{key}")
        elif key in swept or _before(str(config.job.config_name), before, key) != override.value():
            kept.append(_named(override))
    # What is swept over, then options of groups, then values: a name that is cut short still says what differs.
    first = {key.replace("/", ".") for key in swept}
    kept.sort(
        key=lambda word: (
            not word.startswith("checkpoint="),
            (key := word.split("=")[0]) not in first,
            "." in key,
            word,
        )
    )
    name = ",".join(kept).removeprefix("checkpoint=") or "defaults"
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _depth(override: Override) -> int:
    """Which choice decides the defaults of which: an experiment's those of all groups, an optimizer's its schedule.

    A backbone may bring a head along.
    """
    key = override.key_or_group
    return 0 if key in ("experiment", "sweeps") else 1 + key.count("/") + (key == "head")


def _before(config_name: str, given: list[Override], key: str) -> Any:
    """What a key has where only these choices are made."""
    composed = _composed(GlobalHydra.instance().config_loader(), config_name, tuple(str(o.input_line) for o in given))
    return _value(composed, composed.hydra, key)


def _value(config: DictConfig, hydra_config: DictConfig, key: str) -> Any:
    if key in hydra_config.runtime.choices:
        return hydra_config.runtime.choices[key]
    return OmegaConf.select(config, key, default=_ABSENT)


@lru_cache(maxsize=64)  # the jobs of a sweep have most of these in common, and each takes a fifth of a second
def _composed(loader: Any, config_name: str, overrides: tuple[str, ...]) -> DictConfig:
    return loader.load_configuration(config_name, overrides=list(overrides), run_mode=RunMode.RUN)


def _parsed(key: str, value: Any) -> Override:
    """A value as if it had been typed."""
    return OverridesParser.create().parse_override(_quoted(f"{key}={'null' if value is None else value}"))


def _named(override: Override) -> str:
    return f"{override.key_or_group.replace('/', '.')}={_spoken(override)}"


def _spoken(override: Override) -> str:
    """A value as part of a folder's name: of a path its last two parts, and no character a shell would stumble over."""
    value = override.value()
    # However a number is written, 5e-4 or 0.0005, it is the same choice; so are True and true.
    text = str(value).lower() if isinstance(value, (int, float)) else override.get_value_string()
    if override.key_or_group == "checkpoint":
        return re.sub(r"[^\w.+\-\[\]=,]+", "_", _spoken_checkpoint(Path(text.strip("'\""))))
    parts = [part for part in text.strip("'\"").split("/") if part not in ("", ".", "..")]
    return re.sub(r"[^\w.+\-\[\]]+", "_", "_".join(parts[-2:]))


def _spoken_checkpoint(path: Path) -> str:
    """A run's checkpoint by the run's folders and its own name; another file by its folder and its name."""
    folder = path.expanduser().absolute().parent
    above = [folder.parent.parent.name, folder.parent.name] if folder.name == "checkpoints" else [folder.name]
    return "_".join([*above, path.stem])


# A launcher's process opens no door: it finds the resolver because the job, when it is unpickled, asks for this module.
OmegaConf.register_new_resolver("facelab.job", _job_name, use_cache=False, replace=True)
