"""What docs/ and the README say is true: commands compose, keys and files exist, examples run as printed."""

import ast
import functools
import importlib
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_cli import TINY

from facelab.benchmark.pair_files import read_bin
from facelab.data.folder import FolderFaces
from facelab.data.synthetic import render
from facelab.distill.base import Shapes
from facelab.door import with_words
from facelab.training import teaching
from facelab.training.record import read_history

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
DOORS = {
    "facelab.train": "config",
    "facelab.compare": "compare",
    "facelab.evaluate": "evaluate",
    "facelab.export": "export",
    "facelab.prepare": "prepare",
    "facelab.quality": "quality",
    "facelab.verify": "verify",
    "facelab.enrol": "enrol",
    "facelab.identify": "identify",
    "facelab.latency": "latency",
    "facelab.demo": "demo",
}  # module → its primary configuration
WORDS = {
    "facelab.compare": "folders",
    "facelab.verify": "photographs",
    "facelab.enrol": "people",
    "facelab.identify": "photographs",
    "facelab.latency": "photographs",
}  # module → the key of its plain words
NAMED = re.compile(r"# (\S+\.(?:py|yaml))\n")  # the first line of a block that is a file


def blocks(text, *languages):
    return [body for language, body in FENCE.findall(text) if language in languages]


def prose(text):
    return FENCE.sub("", text)


def files(text):
    """The blocks that are files: name → content, in the order of the page."""
    found = [(NAMED.match(body), body) for body in blocks(text, "python", "yaml")]
    return {name.group(1): body for name, body in found if name}


# Commands


def commands(text):
    """Every `python -m facelab.…` of a page as words, in blocks and in text; lines are joined, remarks cut off."""
    shell = "\n".join(blocks(text, "", "bash", "sh", "shell", "console"))
    lines = [*shell.replace("\\\n", " ").splitlines(), *SPAN.findall(prose(text))]
    for line in lines:
        found = re.search(r"(?:^|\s)(?:python3? -m facelab\.|facelab-(?=train|evaluate))(.*)", line)
        if found and "<Tab>" not in line:
            try:
                words = shlex.split("facelab." + found.group(1), comments=True)
            except ValueError:  # for its test to fail, not the collection of all
                words = [f"unreadable: {line}"]
            yield list(
                itertools.takewhile(lambda word: word not in ("|", "||", "&&", "&", ";", ">", ">>", "2>&1"), words)
            )


COMMANDS = sorted({tuple(words) for text in PAGES.values() for words in commands(text)})


def overrides_of(words):
    """What is left for Hydra when flags, `…` and the like are taken away."""
    kept, skip = [], False
    for word in words:
        if skip or word in ("…", "..."):
            skip = False
        elif word.startswith("-"):
            skip = word in ("--cfg", "-c", "--package", "-p", "--shell-completion", "-sc")
        else:
            kept.append(word.replace("…", "some"))
    return kept


def points(overrides):
    """A sweep's points, so many that every choice occurs in one; a single one without a sweep."""
    choices = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            choices.append([f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    for number in range(max(map(len, choices), default=1)):
        yield [values[number % len(values)] for values in choices]


@pytest.fixture(scope="module")
def composer():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def own_options():
    """What the pages themselves add: `group=name` of each YAML that they tell a reader to write."""
    named = itertools.chain.from_iterable(files(text) for text in PAGES.values())
    return {f"{Path(name).parts[1]}={Path(name).stem}" for name in named if name.startswith("conf/")}


def test_there_are_commands_to_look_at():
    assert len(COMMANDS) > 20
    assert ("facelab.train", "loss.margin=0.35", "trainer.epochs=10") in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_printed_command_composes(words, composer):
    door, *rest = words
    assert importlib.util.find_spec(door), f"there is no {door}"
    if door not in DOORS:
        return
    given = with_words(overrides_of(rest), WORDS.get(door))
    if own_options() & set(given) or "--config-dir" in rest:
        return  # the reader's own options: done literally below, or by the README's test
    for point in points(given):
        config = hydra.compose(DOORS[door], overrides=point)
        complete = rest and not any("…" in word or word in ("--help", "--cfg") for word in rest)
        missing = OmegaConf.missing_keys(OmegaConf.masked_copy(config, [key for key in config if key != "job"]))
        assert not (complete and missing), f"the command lacks {missing}"


# Keys


def paths(tree, prefix):
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


@functools.cache
def known_keys():
    """Every dotted key that any file of conf/ gives a value; read as they stand, since composing each takes a while."""
    found = set()
    for file in CONF.glob("**/*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        if group.split("/")[0] in ("experiment", "sweeps", "hydra"):
            continue
        text = file.read_text()
        top = group == "." or text.startswith("# @package _global_")
        found |= set(paths(yaml.safe_load(text) or {}, "" if top else group.replace("/", ".") + "."))
    return {key for key in found if "defaults" not in key}


def options(group):
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def unknown(span):
    """The keys and options of a code span that facelab does not have; what speaks of something else has none."""
    tops = {key.split(".")[0] for key in known_keys()} - {"hydra"}
    for word in re.split(r"\s+|,(?=[\w./]+=)", span):
        key, equals, value = word.lstrip("+~").partition("=")
        group = key.replace(".", "/")  # data.sampler=pk is data/sampler=pk
        if equals and re.fullmatch(r"[a-z_/]+", group) and (CONF / group).is_dir():
            given = set(re.findall(r"[\w-]+", value.replace("…", "")))
            wrong = not given <= options(group) | OWN.get(group, set()) | {"null"}
        else:
            dotted = re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", key) and not key.endswith(FILES)
            wrong = (dotted or equals) and re.split(r"[./]", key)[0] in tops and key not in known_keys()
        if wrong:
            yield word


FILES = (
    ".pth",
    ".pt",
    ".pt2",
    ".onnx",
    ".xml",
    ".safetensors",
    ".npy",
    ".py",
    ".yaml",
    ".md",
    ".csv",
    ".json",
    ".ckpt",
    ".npz",
    ".txt",
    ".bin",
    ".png",
)
OWN = {}
for option in own_options():
    OWN.setdefault(option.split("=")[0], set()).add(option.split("=")[1])


@pytest.mark.parametrize("page", PAGES)
def test_the_keys_and_options_that_it_names_exist(page):
    spans = SPAN.findall(prose(PAGES[page]))
    assert [word for span in spans if not span.startswith(("python ", "make ")) for word in unknown(span)] == []


def test_a_dead_key_is_found(composer):
    text = (
        "`trainer.epoch=3` `loss=arcfaces` `data.holdout.share` `loss.margin=0.3` `data/plan.py` `lfw.bin` `seed=1,2`"
        " `data.sampler=pk` `data.sampler=kp`"
    )
    assert [word for span in SPAN.findall(text) for word in unknown(span)] == [
        "trainer.epoch=3",
        "loss=arcfaces",
        "data.holdout.share",
        "data.sampler=kp",
    ]
    with pytest.raises(Exception, match="epoch"):
        test_a_printed_command_composes(("facelab.train", "trainer.epoch=3"), composer)
    with pytest.raises(AssertionError, match=r"data\.root"):
        test_a_printed_command_composes(("facelab.train", "data=folder"), composer)


# Tests


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_it_names_are_there(page):
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES[page]):
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


# Links


def anchors(text):
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(PAGES[page])):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_page_is_in_the_index():
    listed = set(re.findall(r"\]\(([\w.]+\.md)\)", PAGES["docs/README.md"]))
    assert listed == {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}


# Code


@pytest.mark.parametrize("page", PAGES)
def test_its_python_and_yaml_can_be_read_and_names_what_exists(page):
    own = {name.removesuffix(".py").replace("/", ".") for name in files(PAGES[page])}
    for body in blocks(PAGES[page], "yaml"):
        yaml.safe_load(body)
    for body in blocks(PAGES[page], "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("facelab") and node.module not in own:
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], node.module


def faces(folder):
    """Rendered faces as a user keeps them: 4 people of 3 images, one with a Korean name."""
    for person, name in enumerate(("anna", "boris", "민준", "dora")):
        (folder / name).mkdir(parents=True)
        for image in range(3):
            encoded = cv2.imencode(".jpg" if image else ".png", render(0, person, image, 112, 1.0)[..., ::-1])[1]
            encoded.tofile(folder / name / f"{image}{'.jpg' if image else '.png'}")


def test_the_counts_of_published_sets_are_those_that_a_run_compares():
    rows = re.findall(r"^\| `data=(\w+)` \| ([\d,]+) \| ([\d,]+) \|$", PAGES["docs/data.md"], flags=re.MULTILINE)
    told = {name: tuple(int(number.replace(",", "")) for number in numbers) for name, *numbers in rows}
    known = {file.stem: yaml.safe_load(file.read_text()).get("known") for file in CONF.glob("data/*.yaml")}
    assert told == {name: (of["identities"], of["images"]) for name, of in known.items() if of}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The programs of data.md beside a folder of faces."""
    folder = tmp_path_factory.mktemp("making")
    faces(folder / "faces")
    for name, body in files(PAGES["docs/data.md"]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body)
    return folder


def execute(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    return runpy.run_path(str(script), run_name="__main__")


def test_a_bin_made_as_printed_holds_the_pairs(scripts, monkeypatch):
    genuine = [("anna/1.jpg", "anna/2.jpg"), ("민준/0.png", "민준/1.jpg"), ("dora/0.png", "dora/2.jpg")]
    impostor = [("anna/1.jpg", "boris/1.jpg"), ("anna/2.jpg", "dora/1.jpg"), ("민준/2.jpg", "boris/0.png")]
    lines = [f"{a}, {b}, {flag}\n" for flag, pairs in ((1, genuine), (0, impostor)) for a, b in pairs]
    (scripts / "faces" / "pairs.csv").write_text("".join(lines))
    execute(scripts / "write_bin.py", monkeypatch, scripts / "faces" / "pairs.csv", scripts / "mine.bin")
    made = read_bin(scripts / "mine.bin", "mine", 3, 112)
    assert made.same.sum() == 3
    assert [made.same[made.fold == fold].sum() for fold in range(3)] == [1, 1, 1]
    loose = FolderFaces(scripts / "faces", 112)
    pixels = {str(loose.path(i).relative_to(scripts / "faces")): loose.load(i) for i in range(len(loose))}
    for kind, pairs in ((True, genuine), (False, impostor)):
        for (a, b), (one, other) in zip(pairs, made.pairs[made.same == kind], strict=True):
            assert (made.load(one) == pixels[a]).all()
            assert (made.load(other) == pixels[b]).all()


def test_a_combination_of_losses_runs_as_printed(tmp_path, monkeypatch, capsys):
    page = PAGES["docs/losses.md"]
    ((name, body),) = files(page).items()
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / Path(name).name).write_text(body)
    (words,) = [words for words in commands(page) if f"loss={Path(name).stem}" in words]
    few = ["trainer.max_steps=2", "trainer.log_every=1", "trainer.validate_every=9", "logger=csv", "job=mine"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", None)  # another composer's
    monkeypatch.setattr(sys, "argv", [*words, *TINY, *few, "--config-dir", "mine"])
    importlib.import_module("facelab.train").main()
    assert "1·cosface + 0.5·pairs" in capsys.readouterr().out
    folder = tmp_path / "runs" / "default" / "mine"
    chosen = yaml.safe_load((folder / "config.yaml").read_text())["loss"]
    assert chosen["parts"]["cosface"]["scale"] == 32
    plain = yaml.safe_load((CONF / "loss" / "cosface.yaml").read_text())
    assert chosen["parts"]["cosface"]["margin"] == plain["margin"]
    rows = [row for row in read_history(folder / "metrics.csv") if row["train/loss"]]
    for row in rows:
        parts = float(row["train/loss/cosface"]) + 0.5 * float(row["train/loss/pairs"])
        assert float(row["train/loss"]) == pytest.approx(parts, rel=1e-4)
    assert len(rows) == 2


def test_a_combination_of_distillers_is_built_as_printed(tmp_path, composer):
    ((name, body),) = files(PAGES["docs/distillation.md"]).items()
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / Path(name).name).write_text(body)
    overrides = [f"distill={Path(name).stem}", f"hydra.searchpath=[file://{tmp_path}]"]
    node = hydra.compose("config", overrides).distill
    node = OmegaConf.masked_copy(node, [key for key in node if key not in teaching.COMMON])
    network = Shapes("IResNet", 8)
    made = instantiate(node, _partial_=True)(student=network, teacher=network)
    assert made.weights == {"embedding": 1.0, "relational": 0.1}
    assert made.parts["embedding"].form == "angular"
    plain = yaml.safe_load((CONF / "distill" / "relational.yaml").read_text())
    assert made.parts["relational"].angle == plain["angle"]


def test_the_tours_comparison_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    page = PAGES["docs/tour.md"]
    (body,) = blocks(page, "python")
    (shown,) = blocks(page, "text")
    for line in shown.splitlines():
        job, *numbers = re.findall(r"^\S+|[\d.]+(?=%)", line)
        keys = ("heldout/accuracy", "heldout/accuracy_std", "heldout/tar@far=1e-3")
        folder = tmp_path / "runs" / "default" / job
        folder.mkdir(parents=True)
        found = {key: float(number) / 100 for key, number in zip(keys, numbers, strict=True)}
        (folder / "metrics.json").write_text(json.dumps(found))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare.py").write_text(body)
    runpy.run_path("compare.py")
    assert capsys.readouterr().out == shown


KINDS = ("loss", "backbone", "benchmark")


def test_extending_it_works_as_printed(tmp_path):
    """The files of extend.md are written where it says, and its commands run, all in one process to pay torch once."""
    page = PAGES["docs/extend.md"]
    for folder in ("facelab", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    written = files(page)
    assert [Path(name).parts[1] for name in written] == [
        "loss",
        "loss",
        "backbone",
        "backbone",
        "benchmark",
        "benchmark",
    ]
    for name, body in written.items():
        assert not (tmp_path / name).exists(), f"{name} would replace one of facelab's own"
        (tmp_path / name).write_text(body)
    faces(tmp_path / "data")
    pairs = [(f"{a}/{i}.jpg", f"{b}/{j}.jpg", int(a == b)) for a in ("anna", "민준") for b in ("anna", "민준", "dora")
             for i, j in ((1, 2), (2, 1))]  # fmt: skip
    (tmp_path / "data" / "pairs.csv").write_text("".join(f"{a},{b},{same}\n" for a, b, same in pairs))
    small = [*TINY, "trainer.max_steps=2", "trainer.validate_every=9", "logger=csv"]
    calls = []
    for door, *rest in commands(page):
        if door == "facelab.train" and own_options() & set(rest):
            calls.append([door, *rest, *small, f"job={len(calls)}"])
        elif door == "facelab.evaluate":  # of the run with the network of one's own
            checkpoint = "checkpoint=runs/default/1/checkpoints/best.ckpt"
            rest = [checkpoint if word.startswith("checkpoint=") else word for word in rest]
            calls.append([door, *rest, "benchmark.folds=2", "logger=csv", f"job={len(calls)}"])
    assert [call[0] for call in calls] == ["facelab.train"] * 3 + ["facelab.evaluate"]
    code = (
        "import importlib, json, sys\n"
        "for call in json.loads(sys.argv[1]):\n    sys.argv = call\n    importlib.import_module(call[0]).main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for word in ("GrowingCosFace", "Plain, ", "mine: 12 pairs of 6 images", "mine/accuracy"):
        assert word in done.stdout
    assert all((tmp_path / "runs" / "default" / job / "metrics.json").is_file() for job in "012")
    for record in ("default/2", "evaluations/3"):
        assert "mine/accuracy" in json.loads((tmp_path / "runs" / record / "metrics.json").read_text())
