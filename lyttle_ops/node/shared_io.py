"""The hands of the shared copy: file work on SHARED_DIR, in a process of its own that may hang without harm.

Run as a file, with the standard library alone, so that it starts in milliseconds. One JSON request on standard input,
one JSON answer on standard output; an error is an answer too. It knows no keys: what it writes was encrypted and
authenticated before, and what it reads is checked after.

    <SHARED_DIR>/<term, 20 digits>/manifest.json      what this term says; replaced in one step
    <SHARED_DIR>/<term, 20 digits>/state-<hash>.json  what the manifest names
"""

import json
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 65_536  # bytes
_MOST_TERMS = 16  # newest ones that are looked at


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    folder = Path(request["folder"])
    try:
        answer = {"manifests": manifests, "read": read, "write": write}[request["do"]](folder, request)
    except OSError as exc:
        answer = {"error": f"{exc.filename or folder}: {exc.strerror or exc}", "missing": exc.errno == 2}
    sys.stdout.write(json.dumps(answer))


def manifests(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """{"manifests": {term: text}, "problems": [reason]} of the newest terms that have one; a bad one hides no other."""
    found, problems = {}, []
    for term in sorted(_terms(folder), reverse=True)[:_MOST_TERMS]:
        try:
            with open(_path(folder, term) / MANIFEST, "rb") as file:
                found[str(term)] = file.read(_LARGEST_MANIFEST).decode("utf-8", "replace")
        except FileNotFoundError:
            continue  # its leader has just made the folder
        except OSError as exc:
            problems.append(f"{exc.filename}: {exc.strerror}")
    return {"manifests": found, "problems": problems}


def read(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """{"content": text} of one file of one term."""
    return {"content": (_path(folder, request["term"]) / request["name"]).read_text("utf-8")}


def write(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Put `content` under `name` and then the manifest that names it into the term's folder; tidy up older ones.

    Only this term's folder and older ones are touched, so that a late write changes nothing newer.
    """
    os.listdir(folder)  # an automount mounts now, or says why not
    term = _path(folder, request["term"])
    with suppress(FileExistsError):
        term.mkdir(mode=0o700)
        _sync(folder)
    before = _names(term)
    content, manifest = request["content"].encode(), request["manifest"].encode()
    _replace(term / request["name"], content)
    _replace(term / MANIFEST, manifest)
    for name, written in ((request["name"], content), (MANIFEST, manifest)):
        if (term / name).read_bytes() != written:
            return {"error": f"{term / name}: what was written does not read back"}
    # Readers may still hold the manifest that was replaced just now.
    keep = {MANIFEST, request["name"], *before}
    for path in term.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)
    _prune(folder, request)
    return {}


def _prune(folder: Path, request: dict[str, Any]) -> None:
    """Remove all but the newest `keep` older terms, if they are this cluster's (or nobody's: without a manifest)."""
    older = sorted((term for term in _terms(folder) if term < request["term"]), reverse=True)
    for term in older[request["keep"] :]:
        path = _path(folder, term)
        with suppress(OSError, ValueError, AttributeError):
            manifest = path / MANIFEST
            if manifest.exists() and json.loads(manifest.read_text()).get("key_id") not in request["key_ids"]:
                continue
            for file in path.iterdir():
                file.unlink(missing_ok=True)
            path.rmdir()


def _terms(folder: Path) -> list[int]:
    return [int(name) for name in os.listdir(folder) if len(name) == 20 and name.isascii() and name.isdigit()]


def _path(folder: Path, term: int) -> Path:
    return folder / f"{term:020d}"


def _names(term: Path) -> list[str]:
    """The files that the term's manifest names now."""
    try:
        return list(json.loads((term / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not every file system can do this for a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
