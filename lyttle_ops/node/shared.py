"""The shared copy: the cluster's state on a folder that all nodes share (NFS), for a node that has neither PostgreSQL
nor a snapshot of its own.

The folder cannot know who leads, so nothing is ever overwritten by another leader: each term has a folder of its own,
and readers take the highest term whose manifest is authentic. Terms come from PostgreSQL and only grow. A leader that
froze and thaws writes, at worst, into the folder of a term that is over, which nobody reads.

The manifest names term, revision and the hash of the state's file, under an HMAC-SHA256 with a key derived from the
master key: whoever can write to the folder can remove a copy, but cannot make one, change one, or move one to another
term. (Nor can the folder be believed more than PostgreSQL: it is read only while PostgreSQL is away.) Private keys in
the state are encrypted as they are everywhere.

The folder may be away, or hang in a way that no signal ends (a hard NFS mount). So this process never touches it: a
child does, with a deadline, and while one that was given up is still there no other is started. What is wrong shows in
status, metrics and log, and makes no node unready.
"""

import hmac
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge

from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.clock import Clock
from lyttle_ops.node import shared_io
from lyttle_ops.node.desired import Desired, SnapshotFile, SnapshotUnusable, pack, unpack

log = logging.getLogger(__name__)

WRITE_DEADLINE = 20.0  # seconds
READ_DEADLINE = 5.0  # seconds; a start with PostgreSQL away waits for it
LOOK = 60.0  # seconds between looks at what is there
KEPT_TERMS = 3  # older than the leader's own
_PAUSES = (2.0, 5.0, 15.0, 60.0)  # seconds before a failed write is tried again
_TICK = 1.0  # seconds until the worker sees that its node has begun to lead
_FORMAT = 1

_ok = Gauge("lyttle_shared_copy_ok", "1 while the shared copy is there and current", ["folder"])
_revision = Gauge("lyttle_shared_copy_revision", "Revision of the newest authentic shared copy", ["folder"])
_failures = Counter("lyttle_shared_copy_failures_total", "Failed looks at the shared copy and writes to it", ["folder"])


class SharedCopyUnusable(SnapshotUnusable):
    """The shared copy in SHARED_DIR cannot be used."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An authentic manifest."""

    term: int
    revision: int
    name: str  # of the state's file
    digest: str  # its SHA-256, hex


class SharedCopy:
    """The copy in `folder` (None: there is none, and nothing happens). Thread-safe.

    `term` says which term this node leads and may act for outside of PostgreSQL (Leadership.settled), else None. `load`
    may be called at any time; `publish` is answered by a thread that runs between `start` and `stop`.
    """

    def __init__(self, folder: Path | None, keyring: Keyring, term: Callable[[], int | None], clock: Clock) -> None:
        self._folder = folder
        self._keyring = keyring
        self._term = term
        self._clock = clock
        self._hands = _Hands(str(folder), clock)
        self._wanted: Desired | None = None
        self._written: tuple[int, Desired] | None = None
        self._expected = 0  # revision that every copy must have by now
        self._failed = 0
        self._next_try = self._next_look = float("-inf")
        self._note: dict[str, Any] | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shared copy", daemon=True)

    def __str__(self) -> str:
        return f"the shared copy in {self._folder}"

    def note(self) -> dict[str, Any] | None:
        """{"ok", "message", "since" (UTC)} for people; None when there is no folder or nothing is known yet."""
        return self._note

    def start(self) -> None:
        if self._folder is not None:
            self._thread.start()

    def stop(self) -> None:
        """A write under way goes on by itself; it is one of a term that was this node's."""
        self._stopping.set()
        self._wake.set()

    def publish(self, desired: Desired) -> None:
        """This is the state now. Returns at once; the leader writes it."""
        self._wanted = desired
        self._wake.set()

    def load(self) -> Desired | None:
        """The newest state that is authentic and whole; None when there is none at all. Raises SharedCopyUnusable.

        Takes up to READ_DEADLINE seconds for each of three questions.
        """
        if self._folder is None:
            return None
        good, problems = self._manifests()
        for manifest in good:
            try:
                content = self._ask("read", READ_DEADLINE, term=manifest.term, name=manifest.name)["content"]
                if sha256(content.encode()).hexdigest() != manifest.digest:
                    raise SharedCopyUnusable(f"{self._place(manifest.term)}/{manifest.name} was changed")
                return unpack(json.loads(content), self._keyring, f"{self._place(manifest.term)}/{manifest.name}")
            except (SnapshotUnusable, ValueError) as exc:
                problems.append(str(exc))
        if problems:
            raise SharedCopyUnusable("no shared copy can be used: " + "; ".join(problems))
        return None

    # -- the worker ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(_TICK)
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                self._work()
            except SnapshotUnusable as exc:
                self._fail(str(exc))
            except Exception as exc:
                log.exception("The shared copy: an error nobody foresaw")
                self._fail(repr(exc))

    def _work(self) -> None:
        now, term, wanted = self._clock.monotonic(), self._term(), self._wanted
        if term is not None and wanted is not None and (term, wanted) != self._written:
            if now >= self._next_try:
                self._write(term, wanted)
        elif now >= self._next_look:
            self._look(term)

    def _write(self, term: int, desired: Desired) -> None:
        content = json.dumps(pack(desired, self._keyring), default=str)
        digest = sha256(content.encode()).hexdigest()
        name = f"state-{digest[:16]}.json"
        self._ask(
            "write",
            WRITE_DEADLINE,
            term=term,
            name=name,
            content=content,
            manifest=self._sign(desired, term, {name: digest}),
            keep=KEPT_TERMS,
            key_ids=self._keyring.key_ids,
        )
        self._written = (term, desired)
        self._next_try = float("-inf")
        self._look(term)

    def _look(self, term: int | None) -> None:
        """Whether what readers would take is what they should."""
        self._next_look = self._clock.monotonic() + LOOK
        good, problems = self._manifests()
        newest = good[0] if good else None
        if term != self._term():
            self._next_look = float("-inf")  # asked as what this node no longer is, a leader that was frozen say
            return
        if newest is not None:
            _revision.labels(str(self._folder)).set(newest.revision)
        if term is not None and newest is not None and newest.term > term:
            raise SharedCopyUnusable(
                f"{self._place(newest.term)} is of a term that has not come yet, and readers take it: PostgreSQL "
                "was restored from a backup, or another cluster writes there. Empty the folder, or give this "
                "cluster one of its own"
            )
        found = (newest.term, newest.revision) if newest is not None else None
        if term is not None and self._written is not None and (term, self._written[1].revision) != found:
            self._written = None  # somebody emptied or restored the folder
            raise SharedCopyUnusable(f"what was written to {self._place(term)} is not there any more")
        wanted, expected = self._wanted, self._expected
        self._expected = wanted.revision if wanted is not None else 0
        if newest is None:
            if term is None and not problems and not expected:
                return  # a new cluster: its leader has not come to it yet
            raise SharedCopyUnusable("; ".join(problems) or f"{self._folder} holds no copy")
        if newest.revision < expected:
            # The state of a look ago: its leader has had a minute to write it.
            raise SharedCopyUnusable(
                f"{self._place(newest.term)} has revision {newest.revision}, the cluster has had {expected} for a "
                "while: is the same folder mounted on every node, the leader's too?"
            )
        self._failed = 0
        self._say(True, f"revision {newest.revision} of term {newest.term}")

    def _fail(self, reason: str) -> None:
        self._next_try = self._next_look = self._clock.monotonic() + _PAUSES[min(self._failed, len(_PAUSES) - 1)]
        self._failed += 1
        _failures.labels(str(self._folder)).inc()
        self._say(False, reason)

    def _say(self, ok: bool, message: str) -> None:
        before = self._note
        if before is None or before["ok"] != ok:
            since = self._clock.now().isoformat(timespec="seconds")
            if not ok:
                log.warning("The shared copy is not current: %s", message)
            elif before is not None:
                log.info("The shared copy is current again: %s", message)
        else:
            since = before["since"]
        _ok.labels(str(self._folder)).set(ok)
        self._note = {"ok": ok, "message": message, "since": since}

    # -- manifests -------------------------------------------------------------------------------------

    def _sign(self, desired: Desired, term: int, files: dict[str, str]) -> str:
        key_id = desired.key_id or self._keyring.key_id
        manifest = {
            "format": _FORMAT,
            "key_id": key_id,
            "term": term,
            "revision": desired.revision,
            "written_at": self._clock.now().isoformat(timespec="seconds"),
            "files": files,
        }
        return json.dumps({**manifest, "hmac": self._code(manifest, key_id)}, indent=1)

    def _code(self, manifest: dict[str, Any], key_id: str) -> str:
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        return hmac.new(self._keyring.derive("shared copy", key_id), canonical, sha256).hexdigest()

    def _manifests(self) -> tuple[list[Manifest], list[str]]:
        """The authentic ones, newest term first, and what is wrong with the others."""
        answer = self._ask("manifests", READ_DEADLINE)
        good, problems = [], list(answer["problems"])
        for number, text in sorted(answer["manifests"].items(), key=lambda each: int(each[0]), reverse=True):
            try:
                good.append(self._check(int(number), text))
            except SharedCopyUnusable as exc:
                problems.append(str(exc))
        return good, problems

    def _check(self, term: int, text: str) -> Manifest:
        where = f"{self._place(term)}/{shared_io.MANIFEST}"
        try:
            manifest = json.loads(text)
            code, key_id = str(manifest.pop("hmac")), str(manifest["key_id"])
            if key_id not in self._keyring.key_ids:
                raise SharedCopyUnusable(
                    f"{where} was written with master key {key_id}, this node has "
                    f"{' and '.join(self._keyring.key_ids)}: give every node the cluster's MASTER_KEY, and every "
                    "cluster a SHARED_DIR of its own"
                )
            if not hmac.compare_digest(code.encode(), self._code(manifest, key_id).encode()):
                raise SharedCopyUnusable(f"{where} was changed: its authentication code is wrong")
            ((name, digest),) = manifest["files"].items()
            if manifest["format"] != _FORMAT:
                raise SharedCopyUnusable(f"{where} has format {manifest['format']}, this version reads {_FORMAT}")
            if manifest["term"] != term:
                raise SharedCopyUnusable(f"{where} belongs to term {manifest['term']}: it was moved")
            return Manifest(term, int(manifest["revision"]), str(name), str(digest))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise SharedCopyUnusable(f"{where} cannot be understood: {exc!r}") from exc

    def _place(self, term: int) -> str:
        return f"{self._folder}/{term:020d}"

    def _ask(self, what: str, deadline: float, **request: Any) -> dict[str, Any]:
        return self._hands.do({"do": what, "folder": str(self._folder), **request}, deadline)


class _Hands:
    """At most one child at a time works on the folder, also when one hangs where no signal reaches it."""

    def __init__(self, folder: str, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._mutex = threading.Lock()
        self._left: subprocess.Popen[bytes] | None = None  # given up, and perhaps still there
        self._left_at: datetime | None = None

    def do(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """The child's answer. Raises SharedCopyUnusable when there is none within `deadline` seconds, or an error."""
        if not self._mutex.acquire(timeout=deadline):
            raise SharedCopyUnusable(f"{self._folder} is slow: another thread has waited for it for {deadline:.0f} s")
        try:
            answer = self._do(request, deadline)
        finally:
            self._mutex.release()
        if "error" in answer:
            raise SharedCopyUnusable(
                f"{answer['error']}{'; is the shared folder mounted on this node?' if answer.get('missing') else ''}"
            )
        return answer

    def _do(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        if self._left is not None and self._left.poll() is None:
            assert self._left_at is not None
            raise SharedCopyUnusable(f"{self._folder} has hung since {self._left_at:%Y-%m-%d %H:%M:%S} UTC")
        self._left = None
        process = subprocess.Popen(
            # -I -S: nothing but the standard library, so that it starts in milliseconds; no secret in its environment.
            [sys.executable, "-I", "-S", shared_io.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            start_new_session=True,  # a Ctrl-C at a terminal is for the node
        )
        try:
            out, err = process.communicate(json.dumps(request).encode(), timeout=deadline)
        except subprocess.TimeoutExpired:
            self._give_up(process)
            raise SharedCopyUnusable(f"{self._folder} did not answer within {deadline:.0f} s") from None
        try:
            answer: dict[str, Any] = json.loads(out)
        except ValueError:
            last = err.decode(errors="replace").strip().splitlines()[-1:]
            raise SharedCopyUnusable(
                f"work on {self._folder} ended with code {process.returncode}: {' '.join(last) or 'no reason given'}"
            ) from None
        return answer

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._left, self._left_at = process, self._clock.now()


def last_known(*places: SnapshotFile | SharedCopy) -> Iterator[tuple[Desired, str]]:
    """The states that are kept, each newer than the one before it, with the place in words."""
    newest = -1
    for place in places:
        try:
            desired = place.load()
        except SnapshotUnusable as exc:
            log.error("%s", exc)
            continue
        if desired is not None and desired.revision > newest:
            newest = desired.revision
            yield desired, str(place)
