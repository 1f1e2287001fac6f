"""One run at a time in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

NAME = "run.lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder until the end of the block, or of this process.

    It is a record lock of POSIX: the system lets go of it however the process dies, no child
    inherits it, and NFS and Lustre keep it across machines. Where a file system has no locks, that
    is said.

    Args:
      folder: it must be there.
      wait: for another process that holds it, however long that takes.

    Raises:
      ValueError: another process holds it, with its host and number.
      OSError: nothing can be written there.
    """
    file = (folder / NAME).open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ValueError(
                    f"--workdir={folder}: {_holder(file)} is training in it; wait for it or stop "
                    "it, or use another folder"
                ) from error
            print(
                f"warning: {folder} is on a file system without locks ({error.strerror}); start no "
                "second run in it",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def is_locked(folder: Path) -> bool:
    """Whether another process holds the folder; never where a file system has no locks.

    It takes the lock for an instant, so a process that asks for it just then may not get it.
    """
    try:
        with (folder / NAME).open("r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES) and (folder / NAME).exists()
    return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "another process"
