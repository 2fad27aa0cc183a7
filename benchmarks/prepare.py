"""How fast do photographs become a training set, and what is lost between the stages?

Times, one after another in every round, so that whatever else runs on the machine slows all of them alike:

    read, detect, align, encode   each stage by itself, in one thread, on photographs in memory: images/s and core
    detect=yunet                  python -m facelab.prepare on files, with all that it writes, in so many threads
    detect=none                   the same for the aligned faces: read, checked and packed as they are

`of_slowest` is the share of what the slowest stage alone would allow on as many cores, `of_all` of what all stages in a
row would: the second can reach 1, the first only where one stage takes all the time. For detect=none the only stage is
`check`, reading and judging an aligned face. `of_all` has a target of 0.8.

Writes medians to results/prepare.csv; a row of the same machine, versions and method is replaced. Needs photographs
with a face each, one folder for each person, and the detector's file.

    python benchmarks/prepare.py --photos ../shared/data/photos --model ../shared/data/weights/yunet_n_dynamic.onnx
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import hydra
import numpy as np
import simplejpeg
from omegaconf import OmegaConf
from recording import load, machine, record, today

from facelab.alignment import similarities, warp
from facelab.door import configuration_folder
from facelab.prepare import photos
from facelab.prepare.detect import YuNet
from facelab.prepare.faces import Keeper
from facelab.prepare.photograph import encode, read

SETTING = ["machine", "python", "opencv", "simplejpeg", "photographs", "threads"]
KEY = [*SETTING, "method"]
STAGES = ("read", "detect", "align", "encode")


def copies(photographs: Path, count: int, folder: Path) -> Path:
    """So many photographs, the given ones again and again, in the folders of their people."""
    given = sorted(photographs.glob("*/*.jpg"))
    if not given:
        raise SystemExit(f"{photographs}: has no <person>/<photograph>.jpg")
    for number in range(count):
        one = given[number % len(given)]
        target = folder / one.parent.name / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one, target)
    return folder


def choices(source: Path, out: Path, threads: int, model: str, detect: str, layout: str) -> dict[str, Any]:
    """The defaults of conf/, with these."""
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        given: Any = OmegaConf.to_container(hydra.compose("prepare", [f"source='{source}'", f"out='{out}'"]))
    del given["_target_"]
    given["detector"]["model"] = model
    return {**given, "threads": threads, "detect": detect, "layout": layout, "progress": False}


def stages(source: Path, count: int, detector: YuNet, given: dict[str, Any]) -> dict[str, Callable[[], int]]:
    """Each goes through some photographs and returns how many."""
    encoded = [np.fromfile(file, np.uint8) for file in sorted(source.glob("*/*.jpg"))[:count]]
    images = [read(one) for one in encoded]
    faces = [detector(image) for image in images]
    points = [found[0].points for found in faces if found]
    seen = [image for image, found in zip(images, faces, strict=True) if found]

    def align(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        image, five = pair
        return warp(image, similarities(five[None], given["size"])[0], given["size"])

    warps = list(zip(seen, points, strict=True))
    aligned = list(map(align, warps))
    jpegs = [np.frombuffer(encode(face, given["quality"]), np.uint8) for face in aligned]
    keep = Keeper(given["min_size"], given["size"], given["quality"])

    def over(items: Sequence[Any], function: Callable[[Any], Any]) -> Callable[[], int]:
        def run() -> int:
            for item in items:
                function(item)
            return len(items)

        return run

    return {
        "read": over(encoded, read),
        "detect": over(images, detector),
        "align": over(warps, align),
        "encode": over(aligned, lambda face: encode(face, given["quality"])),
        "check": over(jpegs, keep),
    }


def speed(run: Callable[[], int]) -> float:
    """Images a second."""
    began = time.perf_counter()
    done = run()
    return done / (time.perf_counter() - began)


def whole(given: dict[str, Any], count: int) -> Callable[[], int]:
    """The whole way, files to set; what it made is removed before it is made again."""

    def run() -> int:
        photos.prepare(**given)
        return count

    return run


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of each method in each round; the first round only warms up."""
    source = copies(Path(arguments.photos), arguments.images, folder / "photographs")
    given = choices(source, folder / "set", arguments.threads, arguments.model, "yunet", "pack")
    aligned = choices(source, folder / "aligned", arguments.threads, arguments.model, "yunet", "folder")
    photos.prepare(**aligned)
    faces = choices(folder / "aligned", folder / "again", arguments.threads, arguments.model, "none", "pack")
    count = len(list((folder / "aligned").glob("*/*.jpg")))
    ways = stages(source, arguments.sample, YuNet(**given["detector"]), given)
    speeds: dict[str, list[float]] = {name: [] for name in (*ways, "detect=yunet", "detect=none")}
    for number in range(arguments.rounds + 1):
        for name, run in {
            **ways, "detect=yunet": whole(given, arguments.images), "detect=none": whole(faces, count)
        }.items():  # fmt: skip
            for made in (folder / "set", folder / "again"):
                shutil.rmtree(made, ignore_errors=True)
            value = speed(run)
            if number:
                speeds[name].append(value)
    return speeds


def ratios(speeds: dict[str, list[float]], threads: int) -> dict[str, tuple[float, float]]:
    """Of the whole ways: medians of the rounds' shares of what the slowest stage, and all in a row, allow."""
    found = {}
    for method, parts in (("detect=yunet", STAGES), ("detect=none", ("check",))):
        seconds = [[1 / value for value in values] for values in zip(*(speeds[part] for part in parts), strict=True)]
        slowest = [value * max(one) / threads for value, one in zip(speeds[method], seconds, strict=True)]
        everything = [value * sum(one) / threads for value, one in zip(speeds[method], seconds, strict=True)]
        found[method] = (statistics.median(slowest), statistics.median(everything))
    return found


def main() -> None:
    """Measures, prints and records."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    name = "yunet_n_dynamic.onnx" if int(cv2.__version__.split(".")[0]) >= 5 else "yunet_n_320_320.onnx"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default=str(shared / "photos"), help="folder of <person>/<photograph>.jpg")
    parser.add_argument("--model", default=str(shared / "weights" / name), help="the detector's file")
    parser.add_argument("--images", type=int, default=4000, help="photographs of a set (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=400, help="photographs of a stage (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="as many as cores (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    busy = load()
    with tempfile.TemporaryDirectory(prefix="facelab-prepare-") as folder:
        speeds = measure(Path(folder), arguments)
    shares = ratios(speeds, arguments.threads)
    common = {
        "date": today(),
        "machine": machine(),
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        "photographs": f"{Path(arguments.photos).name} ({arguments.images})",
        "threads": str(arguments.threads),
        "load": busy,
        "rounds": str(arguments.rounds),
    }
    rows = []
    print(f"{'method':<16}{'images/s':>10}{'of slowest':>12}{'of all':>8}")
    for method, values in speeds.items():
        of_slowest, of_all = (f"{share:.3f}" for share in shares[method]) if method in shares else ("", "")
        row = {"method": method, "images_per_s": f"{statistics.median(values):.0f}"}
        rows.append({**common, **row, "of_slowest": of_slowest, "of_all": of_all})
        print(f"{method:<16}{row['images_per_s']:>10}{of_slowest:>12}{of_all:>8}", flush=True)
    if not arguments.dry:
        print(f"recorded in {record('prepare', KEY, rows)}")


if __name__ == "__main__":
    main()
