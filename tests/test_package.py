"""What a wheel and a source archive hold, and that the wheel works far from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = [sys.executable, "-m", "hatchling", "build", "--directory"]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a process that must end well."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the wheel and the source archive, built without network."""
    folder = tmp_path_factory.mktemp("dist")
    run(*BUILD, folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    """Contents of the wheel by name."""
    return contents(dist)


def contents(folder):
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def unpacked(dist, tmp_path_factory):
    """The wheel's files in a folder that is no checkout, with a blank and Korean letters in its name."""
    folder = tmp_path_factory.mktemp("installed") / "다른 곳"
    (file,) = dist.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return folder


def sources(folder, suffix, place):
    """Names that the files of a folder of the checkout have in the wheel."""
    files = [path for path in (ROOT / folder).rglob(f"*{suffix}") if path.is_file()]
    return {f"{place}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}


def test_the_wheel_holds_all_modules_and_all_choices_and_nothing_else(wheel):
    modules = sources("facelab", ".py", "facelab")
    choices = sources("conf", ".yaml", "facelab/conf") | sources("sweeps", ".yaml", "facelab/conf/sweeps")
    assert len(modules) > 40
    assert len(choices) > 20
    about = {name for name in wheel if PurePosixPath(name).parts[0].endswith(".dist-info")}
    assert {name for name in wheel if name.endswith((".py", ".yaml"))} == modules | choices
    others = {name for name in wheel.keys() - about - modules - choices if not name.endswith("/.gitkeep")}
    not_hydras = {"facelab/py.typed", "facelab/conf/sweeps/wandb.yml"}
    assert others - {"facelab/conf/sweeps"} == not_hydras  # what git makes of a link where it knows none
    assert {PurePosixPath(name).name for name in about} >= {"METADATA", "WHEEL", "RECORD", "entry_points.txt"}


def test_the_wheel_speaks_of_no_machine(wheel):
    words = [f"{ROOT}/", *("/".join(("", folder, "")) for folder in ("home", "root"))]
    found = [(name, word) for name, data in wheel.items() for word in words if word.encode() in data]
    assert found == []


def test_the_source_archive_is_complete(dist, wheel, tmp_path):
    """The wheel made from it alone is the same file for file."""
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = tmp_path.iterdir()
    for name in (
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "tests/conftest.py",
        "benchmarks/loader.py",
    ):
        assert (source / name).is_file(), name
    run(*BUILD, tmp_path / "again", "-t", "wheel", cwd=source)
    assert contents(tmp_path / "again") == wheel


def test_it_runs_from_the_wheel_in_another_folder(unpacked, tmp_path):
    folder = tmp_path / "my faces"
    folder.mkdir()
    code = "import facelab.door; print(facelab.door.configuration_folder())"
    place = run(sys.executable, "-c", code, cwd=folder, PYTHONPATH=str(unpacked)).strip()
    assert Path(place) == unpacked / "facelab" / "conf"
    for door, told in (("train", "_target_: facelab.backbone.iresnet.IResNet"), ("evaluate", "checkpoint: ")):
        shown = run(sys.executable, "-m", f"facelab.{door}", "--cfg", "job", cwd=folder, PYTHONPATH=str(unpacked))
        assert told in shown
    assert list(folder.iterdir()) == [], "showing the choices leaves nothing behind"


def test_commands_are_the_modules_main(wheel):
    (text,) = (data.decode() for name, data in wheel.items() if name.endswith("entry_points.txt"))
    commands = dict(line.split(" = ") for line in text.splitlines() if " = " in line)
    assert commands["facelab-train"] == "facelab.train:main"
    for command, target in commands.items():
        module, _, function = target.partition(":")
        assert command == module.removesuffix(".__main__").replace(".", "-"), "a command is named after its module"
        assert callable(getattr(import_module(module), function))


def test_the_shell_completes_options(unpacked, tmp_path):
    """What Hydra's completion asks for when Tab is pressed."""
    line = "facelab-train loss=arc"
    typed = {"PYTHONPATH": str(unpacked), "COMP_LINE": line, "COMP_POINT": str(len(line))}
    assert run(sys.executable, "-m", "facelab.train", "-sc", "query=bash", cwd=tmp_path, **typed).split() == [
        "loss=arcface"
    ]
