"""The house's rules about who knows whom, and what a public repository must not say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FACELAB = ROOT / "facelab"
LEAVES = ("backbone", "head", "loss", "distill", "data", "benchmark")
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf", "wandb"}
# These questions are answered by the room that brings all others together, or by the door that asks them.
ANSWERED_BY = {
    "trainer": "training",
    "optimizer": "training",
    "logger": "training",
    "task": "prepare",
    "format": "export",
}
BINARY = {".npz", ".png", ".pyc", ".jpg", ".bin", ".gif"}


def imports(file):
    """Dotted names of the modules that a file imports, at its top or inside a function."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", LEAVES)
def test_leaf_rooms_know_neither_frameworks_nor_each_other(room):
    files = sorted((FACELAB / room).rglob("*.py"))
    assert files, f"facelab/{room} has no modules"
    others = {other.name for other in FACELAB.iterdir() if other.is_dir()} | {"door", "train", "evaluate"}
    forbidden = FRAMEWORKS | {f"facelab.{other}" for other in others - {room}}
    known = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imports(file)
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in forbidden)
    ]
    assert known == []


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "facelab" / "loss" / "new.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import wandb.sdk\ndef f():\n    from facelab import data\n    from ..head import none\n    from . import b"
    )
    assert {"wandb.sdk", "facelab.data", "facelab.head", "facelab.head.none", "facelab.loss.b"} <= set(imports(file))


def test_doors_open_at_once():
    """`--help` must not wait for torch."""
    heavy = ["torch", "numpy", "cv2", "pytorch_lightning", "wandb", "matplotlib", "rich"]
    doors = ["facelab", "facelab.door", "facelab.train", "facelab.evaluate", "facelab.status"]
    doors += ["facelab.enrol", "facelab.identify", "facelab.latency.threads"]
    doors += [
        f"facelab.{room}.__main__" for room in ("compare", "demo", "export", "latency", "prepare", "quality", "verify")
    ]
    code = f"import sys, {', '.join(doors)}; print([n for n in sys.argv[1:] if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_choice_is_answered_by_the_room_of_its_name():
    for file in sorted((ROOT / "conf").glob("*/**/*.yaml")):
        group = file.relative_to(ROOT / "conf").parts[0]
        room = ANSWERED_BY.get(group, group)
        targets = [line.split(":", 1)[1].strip() for line in file.read_text().splitlines() if "_target_:" in line]
        for target in targets:
            assert target.startswith((f"facelab.{room}.", "torch.nn.")), f"{file.relative_to(ROOT)}: {target}"
        if group not in ("experiment", "sweeps", "hydra"):
            assert (FACELAB / room).is_dir(), f"conf/{group} has no facelab/{room}"


def test_every_room_has_tests_of_its_name():
    rooms = {folder.name for folder in FACELAB.iterdir() if folder.is_dir() and any(folder.glob("[!_]*.py"))}
    tested = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms - tested == set(), "rooms without tests"
    others = {"slurm", "faults", "trust"}  # which concern all rooms
    assert tested - {folder.name for folder in FACELAB.iterdir()} - others == set(), "tests without a room"


def committed():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: what is committed cannot be told")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_speaks_of_one_machine():
    # Put together here, so that this file does not speak of them either.
    words = ["/".join(("", *parts, "")) for parts in (("work",), ("tmp", "w"), ("home",), ("root",))]
    words += ["index-" + "url", "pythonhosted" + ".org", "arti" + "factory", "nexus" + ".", "devpi" + "."]
    files = [file for file in committed() if file.suffix not in BINARY and not file.is_symlink()]
    assert len(files) > 50
    found = [
        f"{file.relative_to(ROOT)}: {word}"
        for file in files
        for text in [file.read_text(encoding="utf-8", errors="replace").lower()]
        for word in words
        if word in text
    ]
    assert found == []
