"""Releases and certificates on disk: <folder>/releases/<hash>/, the link `live`, <folder>/certs/.

Every file appears whole or not at all. A release is never changed once it stands; `live` is replaced atomically.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

from lyttle_ops.nginx import fields
from lyttle_ops.nginx.model import CertificateFiles
from lyttle_ops.nginx.render import release_file, release_hash

KEPT = 5  # releases, the live one included
_CERTIFICATES = "certificates.json"  # which certificates a release names; NGINX does not read it


class Folder:
    """What one instance has on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._releases = folder / "releases"
        self._certs = folder / "certs"
        self._live = folder / "live"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One writer at a time, across threads and processes. Makes the folders on first use.

        Keys and releases are the owner's alone; workers of another account only pass through to temp/.
        """
        for path, mode in ((self._folder, 0o711), (self._releases, 0o700), (self._certs, 0o700)):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
        (self._folder / "temp").mkdir(mode=0o711, exist_ok=True)
        with (self._folder / "apply.lock").open("w") as file:
            flock(file, LOCK_EX)
            yield

    def current(self) -> str | None:
        """Hash of the release that `live` points to; None when there is none, or it is gone."""
        try:
            return os.readlink(self._live).rpartition("/")[2] if (self._live / "nginx.conf").exists() else None
        except OSError:
            return None

    def path(self, release: str) -> Path:
        return self._releases / release

    def stage(self, files: Mapping[str, str], certificates: Iterable[str]) -> tuple[str, bool]:
        """Write a release. Returns its hash, and whether it was not there before."""
        release = release_hash(files)
        final = self.path(release)
        if final.exists():
            return release, False
        draft = self._releases / f".{release}"
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "sites").mkdir(parents=True)
        live = self._live if self.current() else None
        for name, content in files.items():
            if live is None or not _link(live / name, draft / name, content):
                (draft / name).write_text(content, "utf-8")
        (draft / "release.conf").write_text(release_file(release))
        (draft / _CERTIFICATES).write_text(json.dumps(sorted(set(certificates))))
        draft.rename(final)
        return release, True

    def switch(self, release: str) -> None:
        """Make `release` the live one."""
        draft = self._folder / ".live"
        draft.unlink(missing_ok=True)
        draft.symlink_to(f"releases/{release}")
        draft.replace(self._live)
        os.utime(self.path(release))  # age counts from when it was last live

    def discard(self, release: str) -> None:
        shutil.rmtree(self.path(release), ignore_errors=True)

    def prune(self) -> None:
        """Keep the last five releases, and the certificates that one of them names."""
        current = self.current()
        for path in self._releases.glob(".*"):  # a draft whose writer was killed
            shutil.rmtree(path, ignore_errors=True)
        found = list(self._releases.iterdir())
        found.sort(key=lambda path: (path.name == current, path.stat().st_mtime_ns), reverse=True)
        for path in found[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)
        named: set[str] = set()
        for path in found[:KEPT]:
            named.update(json.loads((path / _CERTIFICATES).read_text()))
        for file in self._certs.iterdir():
            if file.name.removesuffix(".pem").removesuffix(".key") not in named:
                file.unlink(missing_ok=True)

    def has_certificate(self, name: str) -> bool:
        return (self._certs / f"{name}.pem").exists() and (self._certs / f"{name}.key").exists()

    def install(self, certificates: Mapping[str, CertificateFiles]) -> None:
        """Write certificates that are not there yet, the key first. Raises UnsafeValue for a name that is no name."""
        for name, files in certificates.items():
            stem = fields.certificate(name)
            _write(self._certs / f"{stem}.key", files.key_pem)
            _write(self._certs / f"{stem}.pem", files.chain_pem.encode())


def _link(source: Path, path: Path, content: str) -> bool:
    """Give a file of the live release a second name, if it has this content: most sites do not change."""
    try:
        if source.read_bytes() != content.encode():
            return False
        os.link(source.resolve(), path)
    except OSError:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        pass
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
