"""One process at a time in a folder: whoever comes second waits, and finds what the first has made."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datamodules.errors import InputError

_held: set[int] = set()  # descriptors of this process's folders


@contextmanager
def alone_in(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold `folder`, which is made if it is not there; another process waits here until it is let go.

    wait: False raises InputError in the place of waiting.
    The lock is on the folder itself: it leaves no file behind and ends with the process, however that ends, whatever
    it has started. So the folder must not be renamed meanwhile. A folder made for it is removed if nothing was put
    into it. Where the file system has no such locks that is said, and nobody waits.
    """
    handle, made = _locked(folder, wait)
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:  # not in a forked process
            if made:
                with suppress(OSError):  # not empty: the usual case
                    folder.rmdir()
            _held.remove(handle)
            os.close(handle)


def _forget() -> None:
    """A forked process (a loader's worker, say) would hold the folders of its parent, and may outlive it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _locked(folder: Path, wait: bool) -> tuple[int, bool]:
    """A descriptor of the folder that is there now, locked, and whether the folder was made for it."""
    while True:
        made = _made(folder)
        with suppress(FileNotFoundError):  # the one before us removed what it had made
            handle = os.open(folder, os.O_RDONLY)
            try:
                _lock(handle, folder, wait)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), folder.stat()):
                        return handle, made
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _lock(handle: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        found = f"{folder}: another process is at work here"
        if not wait:
            raise InputError(f"{found}: launch this again when that has ended") from None
        print(f"{found}: waiting for it", flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:  # NFS, for one, locks no folders
        print(f"{folder} cannot be locked ({error.strerror}): see to it that nobody else works here", flush=True)
