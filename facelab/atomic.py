"""Files that are either complete or not there: written beside their final name, flushed to disk, then renamed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished-"  # begins the names of files that are being written
_LOCK = "lock"  # of a hidden folder
_MANY = 64  # files of a folder, from which on the system writes out all it has


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there gets the final name when the block ends well.

    A crash or an exception inside leaves the old file, if there was one, and never half of a new one. An error of the
    system (a full disk) names `path`.
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
    except OSError as error:
        if error.errno is not None and error.filename in (None, name):  # of a write the system names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """The hidden folder beside `path` in which it is made."""
    return path.with_name(UNFINISHED + path.name)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes a folder that belongs to this process alone until the block ends, however it ends.

    Where a file system knows no locks, nobody else is kept away.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    # Not the folder itself: network file systems lock only what was opened for writing.
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.stat(lock).st_ino == os.fstat(handle).st_ino
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError:
            ours = True
        if not ours:
            raise ValueError(f"{folder}: another process is at work there; wait until it has ended")
        yield
    finally:
        os.close(handle)


def publish_folder(folder: Path, path: Path) -> None:
    """Gives a complete folder its final name.

    Raises:
        FileExistsError: something has that name.
    """
    refuse_existing(path)
    files = [file for file in folder.rglob("*") if file.is_file()]
    if len(files) > _MANY:
        os.sync()  # of the whole machine: one after another they would take longer
    else:
        for file in files:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
    os.replace(folder, path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def forget_leftover(path: Path | str) -> None:
    """Takes away the hidden folder of an `atomic_folder` that a kill struck between its last rename and its tidying.

    Only where the finished folder is there, and nobody is at work in the hidden one.
    """
    path = Path(path)
    if not path.is_dir() or not unfinished(path).is_dir():
        return
    with suppress(ValueError), held(unfinished(path)):
        shutil.rmtree(unfinished(path), ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Nothing is ever written over.

    Raises:
        FileExistsError: something has that name, and is no empty folder.
    """
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(f"{path} is there already: remove it, or give another out=FOLDER")


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Gives an empty, hidden folder beside `path`, which gets the final name when the block ends well.

    A crash leaves the hidden folder behind, whose content the next attempt removes; an exception leaves nothing.

    Raises:
        FileExistsError: `path` is there already.
        ValueError: another process is making it.
    """
    path = Path(path)
    forget_leftover(path)
    refuse_existing(path)
    temporary = unfinished(path)
    with held(temporary):
        try:
            content = temporary / "content"
            shutil.rmtree(content, ignore_errors=True)
            content.mkdir()
            yield content
            publish_folder(content, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
