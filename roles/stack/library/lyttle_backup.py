#!/usr/bin/python
"""A backup: one tar file with the database's dump and the secrets, and what proves that both are whole."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_backup
short_description: Write and read backups of a LyttleOps cluster
description:
  - A backup is a tar file of one folder with C(database.dump) (pg_dump's custom format), C(secrets/NAME),
    C(about.json) and C(SHA256SUMS), so that C(tar) and C(sha256sum -c) can do without this module.
  - V(pack) writes one, reads it back, and only then gives it its name. Mode 0600.
  - V(check) verifies one and tells what it holds, without its secrets. A bare dump, as the database's host keeps them,
    counts too.
  - V(unpack) verifies one and writes its dump into O(folder).
  - V(secrets) verifies one and returns the secrets; use no_log.
  - V(key) names the master key among O(secrets) and looks at no file.
options:
  action:
    description: What to do.
    choices: [pack, check, unpack, secrets, key]
    required: true
    type: str
  path:
    description: The backup.
    type: path
  folder:
    description: Where V(pack) finds and V(unpack) writes C(database.dump).
    type: path
  secrets:
    description: Secrets by name.
    type: dict
    default: {}
  about:
    description: What else to note about the cluster. No secrets.
    type: dict
    default: {}
attributes:
  check_mode:
    description: V(pack) and V(unpack) write nothing.
    support: full
"""

RETURN = r"""
about:
  description: created_at, key_id (names the master key without revealing it), secrets (names), database (size of the
    dump in bytes, 0 without one), and what O(about) noted.
  type: dict
  returned: pack, check, unpack
dump:
  description: The dump's place; empty when the backup holds none.
  type: str
  returned: unpack
values:
  description: The secrets.
  type: dict
  returned: secrets
size:
  description: Bytes of the file.
  type: int
  returned: pack, check, unpack
key_id:
  description: Names the master key; empty without one.
  type: str
  returned: key
"""

import base64
import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ansible.module_utils.basic import AnsibleModule

DUMP, ABOUT, SUMS, SECRETS = "database.dump", "about.json", "SHA256SUMS", "secrets/"
_MAGIC = b"PGDMP"  # pg_dump's custom format
_FORMAT = 1
_CHUNK = 1 << 20
_SMALL = 1 << 20  # bytes; everything but the dump is far below


class Unusable(Exception):
    """The backup cannot be used."""


def key_id(secrets: dict[str, str]) -> str:
    """The name that the nodes give the master key (lyttle_ops.certificates.encryption)."""
    if not secrets.get("master_key"):
        return ""
    return hashlib.sha256(base64.b64decode(secrets["master_key"])).hexdigest()[:16]


def _digest(file: IO[bytes]) -> str:
    hashed = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        hashed.update(chunk)
    return hashed.hexdigest()


def pack(path: str, folder: str, secrets: dict[str, str], about: dict[str, Any]) -> None:
    """Write a backup. It has its name only once it has been read back."""
    dump = os.path.join(folder, DUMP)
    size = os.path.getsize(dump) if os.path.exists(dump) else 0
    told = {**about, "format": _FORMAT, "key_id": key_id(secrets), "secrets": sorted(secrets), "database": size}
    texts = {SECRETS + name: value + "\n" for name, value in secrets.items()}
    texts[ABOUT] = json.dumps(told, indent=1, sort_keys=True) + "\n"
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    if size:
        with open(dump, "rb") as file:
            sums[DUMP] = _digest(file)
    texts[SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    top = os.path.basename(path)[: -len(".tar")]
    temporary = f"{path}.part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as output:
            with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, text in sorted(texts.items()):
                    _add(archive, f"{top}/{name}", len(text.encode()), io.BytesIO(text.encode()))
                if size:
                    with open(dump, "rb") as file:
                        _add(archive, f"{top}/{DUMP}", size, file)
            output.flush()
            os.fsync(output.fileno())
        check(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(time.time())
    archive.addfile(entry, content)


@contextmanager
def _opened(path: str) -> Iterator[tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]]:
    """The archive and its files by their name below the top folder."""
    try:
        with tarfile.open(path, "r:") as archive:
            files = {entry.name.partition("/")[2]: entry for entry in archive.getmembers() if entry.isfile()}
            yield archive, files
    except (tarfile.TarError, EOFError) as exc:
        raise Unusable(f"{path} is no backup of these playbooks, or was cut short: {exc}") from exc


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str:
    file = archive.extractfile(entry)
    if file is None or entry.size > _SMALL:
        raise Unusable(f"{entry.name} in the backup is not what it should be")
    return file.read().decode()


def check(path: str) -> dict[str, Any]:
    """What the backup holds, every file compared with its sum. Raises Unusable."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            size = os.path.getsize(path)
            named = re.search(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z", os.path.basename(path))
            created = "{}-{}-{}T{}:{}:{}Z".format(*named.groups()) if named else "an unknown time"
            return {"created_at": created, "key_id": "", "secrets": [], "database": size}
    with _opened(path) as (archive, files):
        if SUMS not in files or ABOUT not in files:
            raise Unusable(f"{path} is no backup of these playbooks: it lacks {SUMS} or {ABOUT}")
        sums = {}
        for line in _text(archive, files[SUMS]).splitlines():
            digest, _, name = line.partition("  ")
            sums[name] = digest
        if set(sums) != set(files) - {SUMS}:
            raise Unusable(f"{path} does not hold exactly what its {SUMS} names")
        for name, digest in sums.items():
            content = archive.extractfile(files[name])
            if content is None or _digest(content) != digest:
                raise Unusable(f"{name} in {path} is damaged: its SHA-256 is not what {SUMS} says")
        about: dict[str, Any] = json.loads(_text(archive, files[ABOUT]))
    if about.get("format") != _FORMAT:
        raise Unusable(f"{path} has format {about.get('format')}, this version reads {_FORMAT}")
    return about


def unpack(path: str, folder: str) -> str:
    """Write the dump into `folder`; its place, empty without one. The backup is checked already."""
    target = os.path.join(folder, DUMP)
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            file.seek(0)
            _write(target, file)
            return target
    with _opened(path) as (archive, files):
        content = archive.extractfile(files[DUMP]) if DUMP in files else None
        if content is None:
            return ""
        _write(target, content)
    return target


def _write(target: str, content: IO[bytes]) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as output:
        while chunk := content.read(_CHUNK):
            output.write(chunk)


def read_secrets(path: str) -> dict[str, str]:
    """The secrets. The backup is checked already."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            raise Unusable(f"{path} is a dump of the database alone and holds no secrets")
    with _opened(path) as (archive, files):
        names = [name for name in files if re.fullmatch(re.escape(SECRETS) + "[a-z_]+", name)]
        return {name[len(SECRETS) :]: _text(archive, files[name]).rstrip("\n") for name in names}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": ["pack", "check", "unpack", "secrets", "key"]},
            "path": {"type": "path"},
            "folder": {"type": "path"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "about": {"type": "dict", "default": {}},
        },
        required_if=[
            ("action", "pack", ["path", "folder"]),
            ("action", "check", ["path"]),
            ("action", "unpack", ["path", "folder"]),
            ("action", "secrets", ["path"]),
        ],
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    action, path = options["action"], options["path"]
    try:
        if action == "key":
            module.exit_json(changed=False, key_id=key_id(options["secrets"]))
        if action == "pack":
            if module.check_mode:
                module.exit_json(changed=True, about=options["about"], size=0)
            pack(path, options["folder"], options["secrets"], options["about"])
        about = check(path)
        if action == "secrets":
            module.exit_json(changed=False, values=read_secrets(path))
        result = {"about": about, "size": os.path.getsize(path)}
        if action == "unpack":
            dump = "" if module.check_mode else unpack(path, options["folder"])
            module.exit_json(changed=bool(dump), dump=dump, **result)
        module.exit_json(changed=action == "pack", **result)
    except (Unusable, OSError, ValueError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
