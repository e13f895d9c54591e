"""How another process of the same user finds a running campaign, and proves that it may join.

A run with a Dask scheduler keeps a directory ``session`` in its work directory: the certificates
made for this run and ``session.json``, which says where the scheduler is and who runs it. Workers
on other nodes and ``calibdask connect`` read it over the shared file system. Only its owner may
look into it, and it goes away with the run.

Whoever a client connects to can execute code in it. So a session is read only if it is this user's
alone, and if the scheduler proves with the certificate in it that it belongs to the same run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from calibdask.access import check_private
from calibdask.engine.canonical import read_json
from calibdask.errors import CalibdaskError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Session"]

_RETRY_SECONDS = (0.1, 0.4)  # a network file system may show half of the past


@dataclass(frozen=True)
class Session:
    """The directory by which a running campaign is found.

    Attributes
    ----------
    directory : Path
        ``WORKDIR/session``.
    """

    directory: Path

    @property
    def certificate(self) -> Path:
        """Certificate of scheduler, workers and clients; it is its own authority."""
        return self.directory / "certificate.pem"

    @property
    def key(self) -> Path:
        """Key of the certificate."""
        return self.directory / "key.pem"

    @property
    def scratch(self) -> Path:
        """Where scheduler and workers keep their files: Dask puts it on Python's path."""
        return self.directory / "scratch"

    @property
    def description(self) -> Path:
        """What :meth:`publish` wrote."""
        return self.directory / "session.json"

    @classmethod
    def create(cls, workdir: Path, certificate: str, key: str) -> Session:
        """Begin a session; what a dead run left is removed (the caller holds the workdir's lock).

        Parameters
        ----------
        workdir : Path
            The work directory.
        certificate, key : str
            In PEM format.

        Raises
        ------
        CalibdaskError
            The directory cannot be written, or its file system knows no permissions.
        """
        session = cls(workdir / "session")
        try:
            session.remove()
            session.directory.mkdir(mode=0o700)
            mode = session.directory.stat().st_mode & 0o777
            if mode & 0o077:
                raise CalibdaskError(
                    f"{session.directory}: has the permissions {mode:o} although 700 was asked for,"
                    " so other users could read the run's key; choose a --workdir on a file system"
                    " with permissions"
                )
            session.scratch.mkdir(mode=0o700)
            for path, text in ((session.certificate, certificate), (session.key, key)):
                session._write(path, text)
        except OSError as error:
            raise CalibdaskError(
                f"cannot write {session.directory}: {error.strerror or error}; choose another place"
                " with --workdir"
            ) from error
        return session

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)

    def publish(self, description: Mapping[str, Any]) -> None:
        """Return where the scheduler is, in one atomic step."""
        self._write(self.description, json.dumps(dict(description), indent=1))

    def update(self, more: Mapping[str, Any]) -> None:
        """Add to what was published."""
        self.publish({**self.read(), **more})

    def read(self) -> dict[str, Any]:
        """Read what was published.

        Raises
        ------
        ConfigError
            There is no session here, it is not this user's alone, or its scheduler would not have
            to prove itself.
        """
        self._check()
        for wait in (*_RETRY_SECONDS, None):
            try:
                found = read_json(self.description)
            except (FileNotFoundError, ValueError) as error:
                if wait is None:
                    raise ConfigError(
                        f"{self.directory.parent}: no campaign with a scheduler is running here"
                        " (calibdask status tells what was done)"
                    ) from error
                time.sleep(wait)
            except OSError as error:
                raise ConfigError(
                    f"{self.description}: {error.strerror or error}; only the user who started the"
                    " campaign can connect to it"
                ) from error
            else:
                return self._trusted(found)
        raise AssertionError("unreachable")

    def _check(self) -> None:
        """Refuse what another user may have made or changed."""
        remedy = "a session is read only if it is yours alone, as it decides whom to connect to"
        for path in (self.directory, self.description, self.certificate, self.key):
            check_private(path, remedy=remedy, secret=True)

    def _trusted(self, found: Any) -> dict[str, Any]:
        """Refuse a scheduler that has no certificate to show."""
        address = found.get("address") if isinstance(found, dict) else None
        if not str(address).startswith("tls://"):
            raise ConfigError(
                f"{self.description}: names a scheduler without TLS ({address}), which could be"
                " anybody's; runs of calibdask have none such"
            )
        return dict(found)

    def remove(self) -> None:
        """Remove certificates and description."""
        if self.directory.is_symlink():
            self.directory.unlink()
        shutil.rmtree(self.directory, ignore_errors=True)
