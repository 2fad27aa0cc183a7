"""What the README tells a newcomer to do is done literally."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from test_cli import TINY

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_a_loss_is_one_file_and_one_yaml(tmp_path):
    for folder in ("facelab", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", README, flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["facelab/loss/linearface.py", "conf/loss/linearface.yaml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    arguments = ["loss=linearface", "trainer.max_steps=2", "logger=csv", *TINY]
    done = subprocess.run(
        [sys.executable, "-m", "facelab.train", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "LinearFace" in done.stdout


def test_every_group_and_option_of_the_table_exists_and_none_is_missing():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, flags=re.MULTILINE))
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name not in ("sweeps", "hydra")}
    assert rows.keys() == groups
    for group, cell in rows.items():
        options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        named = set(re.findall(r"\w+", cell.split(";")[0]))
        assert named == options, group


def test_every_file_it_names_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
