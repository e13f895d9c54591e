"""Files and directories that only this user may change.

What lies in a work directory is trusted, what lies in a session or in a cache of compiled kernels
is executed. On a machine that is shared, such a directory must belong to the user who runs, and
nobody else may write in it.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from calibdask.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_private", "distrust", "make_private", "make_scratch"]

_ROOT = 0


def distrust(path: Path, *, secret: bool = False) -> str | None:
    """Return why a file or directory cannot be trusted.

    Parameters
    ----------
    path : Path
        An existing file or directory.
    secret : bool
        Others may not even read it, and it may not be reached through a symbolic link.

    Returns
    -------
    str or None
        The end of a sentence that begins with the path; None where all is well.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    """
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode):
        if secret:
            return "is a symbolic link"
        if link.st_uid not in (_ROOT, os.geteuid()):
            return f"is a symbolic link made by {_user(link.st_uid)}"
    found = path.stat()
    if found.st_uid != os.geteuid():
        return f"belongs to {_user(found.st_uid)}, not to {_user(os.geteuid())}"
    if found.st_mode & (0o077 if secret else 0o022):
        action = "use" if secret else "write to"
        return f"has the permissions {stat.S_IMODE(found.st_mode):03o}: other users may {action} it"
    return None


def check_private(path: Path, *, remedy: str, secret: bool = False) -> None:
    """Refuse a file or directory that others own or may change.

    Parameters
    ----------
    path : Path
        A file or directory; one that does not exist is accepted.
    remedy : str
        What to do about it.
    secret : bool
        As for :func:`distrust`.

    Raises
    ------
    ConfigError
        Naming the path, the reason and the remedy.
    """
    try:
        reason = distrust(path, secret=secret)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; {remedy}") from error
    if reason is not None:
        raise ConfigError(f"{path} {reason}; {remedy}")


def make_private(path: Path, *, remedy: str) -> None:
    """Make a directory for this user alone, whatever the umask, or check the one that is there.

    Parameters
    ----------
    path : Path
        The directory; the one that it lies in exists.
    remedy : str
        What to do where it cannot be trusted.

    Raises
    ------
    ConfigError
        It belongs to another user, others may write to it, or its file system has no permissions.
    OSError
        It cannot be made.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    check_private(path, remedy=remedy)


def make_scratch(parent: Path) -> Path:
    """Make a directory for this user alone, with a name of its own, where others may write too.

    Parameters
    ----------
    parent : Path
        An existing directory such as ``/tmp``.

    Raises
    ------
    ConfigError
        There is no such directory, or another user could rename what is in it.
    """
    import tempfile

    try:
        status = parent.stat()
        open_to_others = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if open_to_others or status.st_uid not in (_ROOT, os.geteuid()):
            raise ConfigError(
                f"{parent}: belongs to {_user(status.st_uid)} and has the permissions"
                f" {stat.S_IMODE(status.st_mode):04o}: others could replace what workers keep"
                " there; choose another with Slurm.local_directory"
            )
        return type(parent)(tempfile.mkdtemp(prefix="calibdask-", dir=parent))
    except OSError as error:
        raise ConfigError(
            f"{parent}: {error.strerror or error}; choose another with Slurm.local_directory"
        ) from error


def _user(uid: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # a container may run as a number without a name
        return f"the user with the number {uid}"


def _main() -> None:
    """Make scratch below the directory that is named, and print its path."""
    import sys
    from pathlib import Path

    try:
        sys.stdout.write(f"{make_scratch(Path(sys.argv[1]))}\n")
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    _main()
