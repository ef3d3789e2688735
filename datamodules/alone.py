"""One process at a time in a folder: whoever comes second waits, and finds what the first has made."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made if it is not there; another process waits here until it is let go.

    The lock is on the folder itself: it leaves no file behind and ends with the process, however that ends. A folder
    made for it is removed if nothing was put into it.
    """
    handle, made = _locked(folder)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # not empty: the usual case
                folder.rmdir()
        fcntl.flock(handle, fcntl.LOCK_UN)  # a process forked meanwhile holds the descriptor too
        os.close(handle)


def _locked(folder: Path) -> tuple[int, bool]:
    """A descriptor of the folder that is there now, locked, and whether the folder was made for it."""
    while True:
        made = _made(folder)
        with suppress(FileNotFoundError):  # the one before us removed what it had made
            handle = os.open(folder, os.O_RDONLY)
            _wait(handle, folder)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), folder.stat()):
                    return handle, made
            os.close(handle)


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _wait(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: another process is at work here: waiting for it", flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
