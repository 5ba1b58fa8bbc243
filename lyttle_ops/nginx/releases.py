"""One instance's NGINX: desired state in, a proven release out.

render → stage → `nginx -t` → switch `live` → HUP → the running NGINX says which release it serves
                    └ refused: quarantine the site it names, test again      └ silent: put the last good one back
"""

import hashlib
import os
import pwd
import resource
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prometheus_client import Counter, Histogram

from lyttle_ops.logs import is_json
from lyttle_ops.nginx import blame, probe, rehearsal
from lyttle_ops.nginx.errors import CustomCodeError, ReleaseFailed, UnsafeValue
from lyttle_ops.nginx.folder import Folder
from lyttle_ops.nginx.model import Applied, CertificateFiles, Layout, Site
from lyttle_ops.nginx.process import Process, installed_version
from lyttle_ops.nginx.render import release_hash, render_main, render_site, site_file
from lyttle_ops.settings import Settings

_ACCOUNTS = ("www-data", "nginx", "nobody")  # Debian's, nginx.org's, everybody's
_MOST_FILES = 65_536  # open files of a worker
_ONE_BY_ONE = 3  # sites found by what NGINX says; when there are more, every suspect is tested by itself

_reloads = Counter("lyttle_nginx_reloads_total", "Reloads of NGINX by how they ended", ["result"])
_tests = Histogram("lyttle_nginx_test_seconds", "One `nginx -t` of a whole release")
_reload_time = Histogram("lyttle_nginx_reload_seconds", "From HUP until the new release answers and the old does not")


def layout_of(settings: Settings, folder: Path, instance_id: str) -> Layout:
    """The layout of an instance with `folder` as its run directory. Raises NGINXMissing."""
    return Layout(
        folder=folder,
        http_listen=settings.http_listen,
        https_listen=settings.https_listen,
        name_servers=settings.name_servers,
        instance_id=instance_id,
        node_name=settings.node_name,
        nginx_version=installed_version(),
        trusted_load_balancers=settings.trusted_load_balancers,
        proxy_protocol=settings.proxy_protocol,
        access_log=settings.access_log,
        json_log=is_json(settings.log_format),
        task_id=settings.task_id or "",
        user=worker_account(),
        open_files=_open_files(),
    )


def worker_account() -> str:
    """The account that workers run as: NGINX's usual one where it starts as root, its own ("") elsewhere."""
    if os.geteuid() != 0:
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in _ACCOUNTS if name in known), "root")


def _open_files() -> int:
    """What workers may raise their limit to without being root."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)


class NGINX:
    """The NGINX of one instance. Safe to use from several threads and processes: one apply runs at a time.

    `held` gives listening sockets to take over instead of binding, the same ones as long as NGINX runs; other programs
    may serve from them too, so the first release is rehearsed without them. `deadline` is how many seconds a start or
    reload may take, or five times as long as the last test took if that is more. Raises NGINXMissing.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        instance_id: str,
        held: Callable[[], Sequence[int]] = tuple,
        deadline: float = 15.0,
    ) -> None:
        self.layout = layout_of(settings, folder, instance_id)
        self.folder = folder
        self._process = Process(folder, held=held)
        self._files = Folder(folder)
        self._deadline = deadline
        self._lock = threading.Lock()
        self._quarantine: dict[int, tuple[str, str]] = {}  # site -> (digest of what was refused, NGINX's words)
        self._good: dict[int, str] = {}  # site -> digest of its part in the last release that was tested
        self._last_test = 0.0  # seconds
        self._rehearsed = False

    def command(self) -> list[str]:
        """argv that runs NGINX in the foreground; what `environment` gives goes with it."""
        return self._process.command()

    def environment(self) -> dict[str, str]:
        """What a start needs besides the caller's own environment."""
        return self._process.environment()

    def prepare_start(self) -> None:
        """End stray processes of this instance's NGINX and remove its stale sockets; before every start."""
        self._process.prepare_start()

    def has_held_sockets(self) -> bool:
        """Whether the running NGINX has every socket of `held`: True when there are none."""
        return self._process.has_held_sockets()

    def pid(self) -> int | None:
        """Pid of the running master."""
        master = self._process.master()
        return master.pid if master else None

    def is_running(self) -> bool:
        return self.pid() is not None

    def live_release(self) -> str | None:
        """The release that the running NGINX says it serves; None when it does not answer."""
        return probe.ask_release(self.folder / "nginx.sock")

    def served_serials(self, names: Mapping[str, str]) -> dict[str, str | None]:
        """For each certificate name -> domain: the serial that a real handshake for that domain shows."""
        socket = self.folder / "nginx-tls.sock"
        return {name: probe.ask_serial(socket, domain) for name, domain in names.items()}

    def apply(self, sites: Sequence[Site], certificates: Mapping[str, CertificateFiles], thumbprint: str) -> Applied:
        """Make NGINX serve `sites`, and prove that it does. The same desired state as before does nothing at all.

        A site that NGINX refuses is left out, with the reason in the answer, and is tried again when it changes.
        When NGINX does not run, the release is made live for its next start. Raises ReleaseFailed when a release does
        not come up (the last good one serves again) or no site is to blame, and UnsafeValue for a wrong layout.
        """
        with self._lock, self._files.exclusive():
            layout = replace(self.layout, thumbprint=thumbprint)
            self._files.install(certificates)
            texts, refused = self._render(sites, layout)
            names = {site.id: tuple(site.tls.values()) for site in sites}
            release, found = self._settle(texts, names, layout)
            for number, message in found.items():
                self._quarantine[number] = _digest(texts.pop(number)), message
            self._good = {number: _digest(text) for number, text in texts.items()}
            if self._process.held() and not self._rehearsed:
                self._rehearse([site for site in sites if site.id in texts], layout)
            reloaded = self._bring_up(release)
            self._files.prune()
            return Applied(release, reloaded, dict(sorted((refused | found).items())))

    def _render(self, sites: Sequence[Site], layout: Layout) -> tuple[dict[int, str], dict[int, str]]:
        """Site files by id, and for the other sites why they have none."""
        texts: dict[int, str] = {}
        refused: dict[int, str] = {}
        wanted = {site.id for site in sites}
        self._quarantine = {number: entry for number, entry in self._quarantine.items() if number in wanted}
        for site in sites:
            try:
                text = render_site(site, layout)
            except (UnsafeValue, CustomCodeError) as exc:
                refused[site.id] = str(exc)
                continue
            missing = [name for name in site.tls.values() if not self._files.has_certificate(name)]
            digest, message = self._quarantine.get(site.id, ("", ""))
            if missing:
                refused[site.id] = f"the files of certificate {missing[0]} are not there"
            elif digest == _digest(text):
                refused[site.id] = message
            else:
                texts[site.id] = text
        return texts, refused

    def _settle(
        self, texts: Mapping[int, str], names: Mapping[int, Collection[str]], layout: Layout
    ) -> tuple[str, dict[int, str]]:
        """Stage the largest release that NGINX accepts: its hash, and why each site that is not in it was refused."""
        bad: dict[int, str] = {}

        def attempt(chosen: Collection[int], keep: bool = False) -> str | None:
            parts = {number: texts[number] for number in sorted(chosen)}
            return self._attempt(parts, [name for number in parts for name in names[number]], layout, keep)

        while True:
            chosen = set(texts) - set(bad)
            files = _assemble({number: texts[number] for number in sorted(chosen)}, layout)
            release = release_hash(files)
            message = None if release == self._files.current() else attempt(chosen, keep=True)
            if message is None:
                return release, bad
            found = blame.named_sites(message, {number: names[number] for number in chosen})
            if not found or len(bad) >= _ONE_BY_ONE:
                suspects = [number for number in sorted(chosen) if self._good.get(number) != _digest(texts[number])]
                found = blame.search(attempt, chosen - set(suspects), suspects)
            if not found:
                raise ReleaseFailed(f"NGINX refuses the configuration, and no site is to blame: {self._tidy(message)}")
            bad |= {number: self._tidy(why) for number, why in found.items()}

    def _attempt(
        self, texts: Mapping[int, str], certificates: Collection[str], layout: Layout, keep: bool
    ) -> str | None:
        """`nginx -t` on a release of these sites: None, or NGINX's own words. It stays only when `keep` and good."""
        release, new = self._files.stage(_assemble(texts, layout), certificates)
        message: str | None = "the test did not end"
        started = time.monotonic()
        try:
            with _tests.time():
                message = self._process.test(self._files.path(release) / "nginx.conf")
        finally:
            self._last_test = time.monotonic() - started
            if new and (message is not None or not keep):
                self._files.discard(release)
        return message

    def _rehearse(self, sites: Sequence[Site], layout: Layout) -> None:
        """Prove that NGINX comes up with these sites, where no client can meet it. Raises ReleaseFailed."""
        apart = rehearsal.layout_without_ports(layout)
        files = _assemble({site.id: render_site(site, apart) for site in sites}, apart)
        release, _ = self._files.stage(files, [name for site in sites for name in site.tls.values()])
        deadline = max(self._deadline, 5 * self._last_test)
        try:
            rehearsal.rehearse(self._process, self.folder, self._files.path(release) / "nginx.conf", release, deadline)
        finally:
            self._files.discard(release)
        self._rehearsed = True

    def _bring_up(self, release: str) -> bool:
        """Make a tested release live, and NGINX serve it. True when it took a reload."""
        previous = self._files.current()
        running = self.is_running()
        if release == previous and (not running or self.live_release() == release):
            return False
        self._files.switch(release)
        if not running:
            return False
        if self._reload(release):
            _reloads.labels("ok").inc()
            return True
        if previous is None or previous == release:
            _reloads.labels("failed").inc()
            raise ReleaseFailed(f"NGINX does not answer with release {release}; its log says why")
        self._files.switch(previous)
        # A reload that cannot bind goes on trying for seconds before NGINX looks at the next signal.
        back = self._reload(previous, at_least=15.0)
        self._files.discard(release)
        _reloads.labels("reverted").inc()
        state = "serves again" if back else "is put back, but does not answer either"
        raise ReleaseFailed(f"release {release} did not come up, NGINX's log says why; release {previous} {state}")

    def _reload(self, release: str, at_least: float = 0.0) -> bool:
        """HUP, then wait until the new release answers and no worker of the old one takes connections."""
        deadline = time.monotonic() + max(self._deadline, at_least, 5 * self._last_test)
        old = self._process.accepting_workers()
        with _reload_time.time():
            self._process.reload()
            while time.monotonic() < deadline:
                if self.live_release() == release and not old & self._process.accepting_workers():
                    return True
                if not self.is_running():
                    return False
                time.sleep(0.01)
        return False

    def _tidy(self, message: str) -> str:
        return blame.tidy(message, self.folder)


def _assemble(texts: Mapping[int, str], layout: Layout) -> dict[str, str]:
    return {
        "nginx.conf": render_main(layout, texts.values()),
        **{site_file(number): text for number, text in texts.items()},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
