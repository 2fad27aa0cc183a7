"""What is told beside an exported file: export.json for programs, export.md for people."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facelab.digest import digest_of, sha256
from facelab.export.parity import Parity, Tolerance

PACKAGES = ("facelab", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")


def versions() -> dict[str, str]:
    """Of Python and of what an export is made with."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_report(
    folder: Path,
    file: Path,
    metadata: Mapping[str, Any],
    checkpoint: Path,
    parity: Parity,
    tolerance: Tolerance,
    faces: str,
    seconds: float,
) -> None:
    """Writes both, into the folder that the export is made in.

    Args:
        folder: where.
        file: the exported file, beside which others of it may lie.
        metadata: what the file says of itself.
        checkpoint: what was exported.
        parity: what was found.
        tolerance: what was allowed.
        faces: on which faces, in words.
        seconds: that it took.
    """
    files = sorted(one for one in folder.iterdir() if one.stem == file.stem)
    about = {
        **metadata,
        "file": file.name,
        "sha256": digest_of(file),
        "files": {one.name: {"sha256": sha256(one), "bytes": one.stat().st_size} for one in files},
        "checkpoint": str(checkpoint),
        "parity": {**parity.as_dict(), "faces": faces, "tolerance": asdict(tolerance)},
        "versions": versions(),
        "seconds": round(seconds, 1),
    }
    about |= {name: about["versions"].get(name) for name in ("torch", "python")}
    (folder / "export.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "export.md").write_text(in_words(about), encoding="utf-8")


def in_words(about: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    parity, limit = about["parity"], about["parity"]["tolerance"]
    before, after = (
        [f"{100 * parity[f'{name}_{when}']:.2f} %" for name in ("accuracy", "fnmr")] for when in ("before", "after")
    )
    files = "\n".join(
        f"* `{name}`, {one['bytes']:,} bytes, SHA-256 {one['sha256']}" for name, one in about["files"].items()
    )
    tools = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    run = about.get("run") or {}
    trained = f"run {run.get('name')}/{run.get('job')}, step {about['step']:,}" if run else "published weights"
    return f"""# {about["file"]}

{files}

|  |  |
|---|---|
| takes | {about["takes"]} |
| gives | {about["gives"]} |
| precision | {about["precision"]}, {about["folded"]} batch norms folded |
| trained as | {trained}; {about["input"]["color"]}, (pixel − {about["input"]["mean"]:g})/{about["input"]["std"]:g} |
| out of | `{Path(about["checkpoint"]).name}`, SHA-256 {about["checkpoint_sha256"]} |
| with | {tools} |

Compared with the original on {parity["faces"]}:

| | original | exported | allowed |
|---|---|---|---|
| cosine distance, largest | | {parity["max"]:.2g} | {limit["max"]:.2g} |
| cosine distance, mean | | {parity["mean"]:.2g} | {limit["mean"]:.2g} |
| verification accuracy | {before[0]} | {after[0]} | −{100 * limit["accuracy"]:.2g} % |
| FNMR at FMR {parity["fmr"]:g} | {before[1]} | {after[1]} | +{100 * limit["fnmr"]:.2g} % |
"""
