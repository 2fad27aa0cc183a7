"""Files that are either complete or not there: written beside their final name, flushed to disk, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"  # begins the names of files that are being written


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there gets the final name when the block ends well.

    A crash or an exception inside leaves the old file, if there was one, and never half of a new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since some writers (numpy, matplotlib) choose the format by it or append their own.
    handle, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files for their owner alone; a record is for the whole team, as the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
        # The rename itself must reach the disk too, or a power cut could bring the old file back.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
