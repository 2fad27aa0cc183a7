"""All tests on every Python there is, with the newest and the lowest versions that pyproject.toml permits.

    python tests/versions.py [--only 3.10-lowest] … [--keep] [--jobs 2] [arguments of pytest]

Each combination gets an environment of its own in .versions/ (up to 7 GB, removed when its tests have passed; kept
environments are used again while pyproject.toml stays as it is). One is tested after another, or as many at a time as
--jobs says: an hour or more in all. Ends with a table, and with 1 where a combination failed. A Python that is not
installed is named and passed over.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".versions"
# The lowest versions have no wheels for the newest Pythons.
COMBINATIONS = ["3.10-lowest", "3.10-newest", "3.11-newest", "3.12-newest", "3.13-newest"]
SHOWN = ("torch", "pytorch-lightning", "hydra-core", "numpy")


def interpreter(version: str) -> str | None:
    """A Python of that version: one on the path, or one of pyenv's."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in [*([found] if found else []), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]:
        asked = subprocess.run([candidate, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], **_quiet())
        if asked.returncode == 0 and asked.stdout.strip() == version:  # pyenv's shims answer only where they are active
            return str(candidate)
    return None


def lowest() -> list[str]:
    """name==bound of every dependency that has a lower bound, as pyproject.toml states them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    return [f"{one.name}=={bound.version}" for one in requirements for bound in one.specifier if bound.operator == ">="]


def attempt(combination: str, arguments: list[str], keep: bool) -> list[str]:
    """A row of the table: combination, versions, result."""
    python, _, which = combination.partition("-")
    place, log = PLACE / combination, PLACE / f"{combination}.log"
    found = interpreter(python)
    if found is None:
        return [combination, *("" for _ in SHOWN), "no such Python here"]
    own = str(place / "bin" / "python")
    constraints, made = PLACE / f"{combination}.txt", place / "made_for.toml"
    constraints.write_text("".join(f"{line}\n" for line in lowest()) if which == "lowest" else "")
    install = [own, "-m", "pip", "install", "--quiet", "-c", str(constraints), "-e", ".[dev]"]
    project = (ROOT / "pyproject.toml").read_text()
    with log.open("w") as file:
        steps = ([found, "-m", "venv", "--clear", str(place)], install)
        for step in () if made.is_file() and made.read_text() == project else steps:
            if subprocess.run(step, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode:
                return [combination, *("" for _ in SHOWN), f"FAILED to install: {log.relative_to(ROOT)}"]
        made.write_text(project)
        ask = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
        versions = subprocess.run([own, "-c", ask], check=True, **_quiet()).stdout.split()
        command = [own, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    last = log.read_text().strip().splitlines()[-1].strip("= ")
    if code == 0 and not keep:
        shutil.rmtree(place)
    return [combination, *versions, last if code == 0 else f"FAILED ({last}): {log.relative_to(ROOT)}"]


def _quiet() -> dict:
    return {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}


def main() -> int:
    """Tries the combinations and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=COMBINATIONS, help="may be given several times")
    parser.add_argument("--keep", action="store_true", help="keep the environments of those that pass, too")
    parser.add_argument("--jobs", type=int, default=1, help="combinations tested at a time; a core for each")
    given, arguments = parser.parse_known_args()
    PLACE.mkdir(exist_ok=True)

    def timed(combination: str) -> list[str]:
        """One combination, and its word as soon as there is one."""
        began = time.monotonic()
        row = attempt(combination, arguments, given.keep)
        print(f"{combination}: {row[-1]} ({(time.monotonic() - began) / 60:.0f} minutes)", flush=True)
        return row

    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(timed, given.only or COMBINATIONS))
    table = [["versions", *SHOWN, "tests"], ["---"] * (len(SHOWN) + 2), *rows]
    print("\n" + "\n".join(f"| {' | '.join(row)} |" for row in table))
    return int(any(row[-1].startswith("FAILED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
