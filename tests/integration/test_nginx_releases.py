"""Changes go live tested and proven, or not at all; a site that NGINX refuses stops nobody else."""

import json
import os
import pwd
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from cryptography import x509

from lyttle_ops.nginx.candidate import validate_site
from lyttle_ops.nginx.errors import NGINXMissing, ReleaseFailed
from lyttle_ops.nginx.model import CertificateFiles, Site, Target
from lyttle_ops.nginx.process import Process, installed_version, read_log_line
from lyttle_ops.nginx.releases import NGINX
from tests.support import loopback
from tests.support.nginx import THUMBPRINT, Handler, Running, certificate, receive, site, target, upstream
from tests.support.wait import until


@pytest.fixture
def nginx() -> Iterator[Running]:
    running = Running()
    try:
        yield running
    finally:
        running.close()


def serial(files: CertificateFiles) -> str:
    return format(x509.load_pem_x509_certificate(files.chain_pem.encode()).serial_number, "x")


def test_the_same_desired_state_does_nothing(nginx: Running) -> None:
    first = nginx.serve([site(1), site(2)])
    workers = {worker.pid for worker in nginx.workers()}
    files = sorted((path, path.stat().st_mtime_ns) for path in nginx.folder.rglob("*") if path.name != "apply.lock")
    again = nginx.apply([site(2), site(1)])
    assert (again.release, again.reloaded) == (first.release, False)
    assert {worker.pid for worker in nginx.workers()} == workers
    assert sorted((p, p.stat().st_mtime_ns) for p in nginx.folder.rglob("*") if p.name != "apply.lock") == files


def test_a_change_is_live_when_apply_returns(nginx: Running) -> None:
    nginx.serve([])
    for number in range(1, 6):
        applied = nginx.apply([site(n, kind="redirect") for n in range(1, number + 1)])
        assert applied.reloaded
        assert nginx.nginx.live_release() == applied.release == os.readlink(nginx.folder / "live").split("/")[1]
        assert nginx.get(f"site{number}.example")[0] == 308


def test_before_the_start_a_release_is_only_made_ready(nginx: Running) -> None:
    applied = nginx.apply([site(1)])
    assert not applied.reloaded
    assert not nginx.nginx.is_running()
    nginx.start()
    assert nginx.nginx.live_release() == applied.release
    assert nginx.nginx.pid() == (nginx.process and nginx.process.pid)


def test_a_reload_drops_no_request_on_fresh_connections(nginx: Running) -> None:
    with upstream() as server:
        sites = [site(1, target=target(server))]
        nginx.serve(sites)
        stop = threading.Event()
        results: list[int | str] = []

        def ask() -> None:
            while not stop.is_set():
                try:
                    results.append(nginx.get("site1.example")[0])
                except (OSError, IndexError, ValueError) as exc:
                    results.append(repr(exc))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in range(8):
                before = len(results)
                assert nginx.apply([*sites, site(100 + number)]).reloaded
                until(lambda before=before: len(results) > before + 10, what="requests go on")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert set(results) == {200}


def test_a_request_in_flight_survives_a_reload(nginx: Running) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Handler):
        def handle_any(self) -> None:
            arrived.set()
            assert go_on.wait(20)
            self.answer(200, b"late")

    with upstream(Slow) as server:
        nginx.serve([site(1, target=target(server))])
        with nginx.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: site1.example\r\nConnection: close\r\n\r\n")
            assert arrived.wait(10)
            assert nginx.apply([site(1, target=target(server)), site(2)]).reloaded
            go_on.set()
            assert receive(connection).endswith(b"late")


def test_two_bad_sites_among_a_hundred_are_left_out_with_nginx_s_own_words(nginx: Running) -> None:
    sites = [site(number, kind="redirect") for number in range(1, 101)]
    sites[20] = replace(sites[20], custom_code="proxy_buffering perhaps;")
    sites[70] = replace(sites[70], custom_code="location ~ ( { return 204; }")
    applied = nginx.serve(sites)
    assert set(applied.quarantined) == {21, 71}
    assert 'invalid value "perhaps" in "proxy_buffering"' in applied.quarantined[21]
    assert "missing" in applied.quarantined[71]
    assert str(nginx.folder) not in "".join(applied.quarantined.values())
    assert [nginx.get(f"site{number}.example")[0] for number in (1, 20, 21, 22, 71, 100)] == [
        308,
        308,
        404,
        308,
        404,
        308,
    ]


def test_what_cannot_even_be_rendered_is_left_out_too(nginx: Running) -> None:
    broken = [site(1, custom_code="root /;"), site(2, domains=("a b",)), site(3, tls={"site3.example": "3-gone"})]
    applied = nginx.serve([*broken, site(4, kind="redirect")])
    assert set(applied.quarantined) == {1, 2, 3}
    assert '"root" is not allowed' in applied.quarantined[1]
    assert "3-gone" in applied.quarantined[3]
    assert nginx.get("site4.example")[0] == 308


def test_many_bad_sites_cost_one_test_each_and_not_one_whole_test_each(nginx: Running) -> None:
    good = [site(number, kind="redirect") for number in range(1, 20)]
    bad = [site(number, custom_code="gzip perhaps;") for number in range(20, 40)]
    applied = nginx.serve(good + bad)
    assert set(applied.quarantined) == set(range(20, 40))
    assert nginx.get("site19.example")[0] == 308


def test_a_quarantined_site_is_tried_again_when_it_changes_and_not_before(
    nginx: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = site(1, custom_code="gzip perhaps;")
    nginx.serve([bad, site(2)])
    tests: list[Path] = []
    real = Process.test

    def counted(process: Process, configuration: Path) -> str | None:
        tests.append(configuration)
        return real(process, configuration)

    monkeypatch.setattr(Process, "test", counted)
    again = nginx.apply([bad, site(2)])
    assert (set(again.quarantined), again.reloaded, tests) == ({1}, False, [])
    repaired = nginx.apply([replace(bad, custom_code="gzip on;"), site(2)])
    assert (repaired.quarantined, repaired.reloaded) == ({}, True)
    assert nginx.apply([site(2)]).quarantined == {}


def test_sites_that_only_clash_with_each_other_are_found_by_testing(
    nginx: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # NGINX has no such clash today that names no file: the message of a real one is stripped of its place.
    real = Process.test

    def nameless(process: Process, configuration: Path) -> str | None:
        texts = [path.name for path in (configuration.parent / "sites").iterdir()]
        if {"3.conf", "7.conf"} <= set(texts):
            return "could not build the hash of something"
        return real(process, configuration)

    monkeypatch.setattr(Process, "test", nameless)
    applied = nginx.serve([site(number) for number in range(1, 10)])
    assert applied.quarantined == {7: "could not build the hash of something"}


def test_a_certificate_that_does_not_fit_its_key_costs_its_own_site_only(nginx: Running) -> None:
    mixed = CertificateFiles(certificate("site1.example").chain_pem, certificate("site1.example").key_pem)
    torn = CertificateFiles("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", mixed.key_pem)
    good = certificate("site3.example")
    sites = [site(n, ssl=True, tls={f"site{n}.example": f"{n}-a"}) for n in (1, 2, 3)]
    applied = nginx.serve(sites, {"1-a": mixed, "2-a": torn, "3-a": good})
    assert set(applied.quarantined) == {1, 2}
    assert "key values mismatch" in applied.quarantined[1]
    assert nginx.nginx.served_serials({"3-a": "site3.example", "1-a": "site1.example"}) == {
        "3-a": serial(good),
        "1-a": None,
    }


def test_handshakes_show_the_new_certificate_as_soon_as_apply_returns(nginx: Running) -> None:
    for number in range(6):
        files = certificate("site1.example")
        name = f"1-{number}"
        nginx.serve([site(1, ssl=True, tls={"site1.example": name})], {name: files})
        for _ in range(10):
            assert nginx.nginx.served_serials({name: "site1.example"}) == {name: serial(files)}


def test_a_release_that_tests_well_and_does_not_come_up_is_put_back() -> None:
    running = Running(deadline=1.0)
    try:
        first = running.serve([site(1, kind="redirect")])
        with socket.socket() as stranger:
            host = loopback.address()
            stranger.bind((host, 0))
            stranger.listen()
            # `nginx -t` takes an address in use for its own, so only the reload finds out.
            address = "{}:{}".format(*stranger.getsockname())
            usual = running.nginx.layout
            running.nginx.layout = replace(usual, http_listen=(*usual.http_listen, address))
            with pytest.raises(ReleaseFailed, match=f"release {first.release} serves again"):
                running.apply([site(1, kind="redirect"), site(2, kind="redirect")])
        assert running.nginx.live_release() == first.release
        assert os.readlink(running.folder / "live") == f"releases/{first.release}"
        assert running.get("site1.example")[0] == 308
        running.nginx.layout = usual
        running.nginx._deadline = 15.0
        assert running.apply([site(1, kind="redirect"), site(2, kind="redirect")]).reloaded
        assert running.get("site2.example")[0] == 308
    finally:
        running.close()


def test_a_configuration_that_is_wrong_as_a_whole_blames_no_site(nginx: Running) -> None:
    nginx.serve([site(1)])
    usual = nginx.nginx.layout
    nginx.nginx.layout = replace(usual, user="no-such-user")
    with pytest.raises(ReleaseFailed, match=r"no site is to blame.*no-such-user"):
        nginx.apply([site(1), site(2)])
    nginx.nginx.layout = usual
    assert nginx.apply([site(1), site(2)]).quarantined == {}


def test_a_reload_that_was_missed_is_made_up_for(nginx: Running) -> None:
    nginx.serve([site(1)])
    master = psutil.Process(nginx.nginx.pid())
    pid_file = nginx.folder / "nginx.pid"
    pid_file.rename(pid_file.with_suffix(".away"))  # apply takes it for stopped
    applied = nginx.apply([site(2, kind="redirect")])
    assert not applied.reloaded
    pid_file.with_suffix(".away").rename(pid_file)
    assert master.is_running()
    again = nginx.apply([site(2, kind="redirect")])
    assert (again.release, again.reloaded) == (applied.release, True)
    assert nginx.get("site2.example")[0] == 308


def test_the_last_five_releases_and_their_certificates_are_kept_and_keys_are_private(nginx: Running) -> None:
    for number in range(8):
        name = f"1-{number}"
        nginx.serve([site(1, ssl=True, tls={"site1.example": name})], {name: certificate("site1.example")})
    kept = {f"1-{number}" for number in range(3, 8)}
    assert len(list((nginx.folder / "releases").iterdir())) == 5
    certs = list((nginx.folder / "certs").iterdir())
    assert {path.stem for path in certs} == kept
    assert {oct(path.stat().st_mode & 0o777) for path in certs} == {"0o600"}
    assert oct((nginx.folder / "certs").stat().st_mode & 0o777) == "0o700"
    # A release of before is still whole, so it can be gone back to.
    old = nginx.apply([site(1, ssl=True, tls={"site1.example": "1-3"})])
    assert old.reloaded
    assert old.quarantined == {}


def test_two_applies_at_once_go_one_after_the_other(nginx: Running) -> None:
    nginx.serve([])
    other = NGINX(nginx.settings, nginx.folder, nginx.nginx.layout.instance_id)
    done: list[str] = []

    def apply(instance: NGINX, number: int) -> None:
        done.append(instance.apply([site(number)], {}, THUMBPRINT).release)

    threads = [
        threading.Thread(target=apply, args=(instance, number))
        for number, instance in enumerate((nginx.nginx, other, nginx.nginx, other), 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(done)) == 4
    assert nginx.nginx.live_release() == done[-1]


def test_a_master_that_was_killed_leaves_nothing_in_the_way_and_nobody_else_is_touched(nginx: Running) -> None:
    other = Running()
    try:
        other.serve([site(1, kind="redirect")])
        first = nginx.serve([site(1, kind="redirect")])
        strays = nginx.workers()
        assert nginx.process is not None
        nginx.process.kill()
        nginx.process.wait()
        assert nginx.get("site1.example")[0] == 308  # its workers serve on
        assert nginx.nginx.live_release() == first.release  # and hold the sockets
        assert not nginx.nginx.is_running()
        changed = nginx.apply([site(2, kind="redirect")])
        assert not changed.reloaded
        others = {worker.pid for worker in other.workers()}
        nginx.start()
        assert nginx.nginx.live_release() == changed.release
        assert nginx.get("site2.example")[0] == 308
        psutil.wait_procs(strays, timeout=5)
        assert not any(stray.is_running() for stray in strays)
        assert {worker.pid for worker in other.workers()} == others
        assert other.get("site1.example")[0] == 308
    finally:
        other.close()


def test_a_stray_worker_finishes_its_request_while_the_next_nginx_serves(nginx: Running) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Handler):
        def handle_any(self) -> None:
            arrived.set()
            assert go_on.wait(20)
            self.answer(200, b"late")

    with upstream(Slow) as server:
        nginx.serve([site(1, target=target(server)), site(2, kind="redirect")])
        with nginx.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: site1.example\r\nConnection: close\r\n\r\n")
            assert arrived.wait(10)
            assert nginx.process is not None
            nginx.process.kill()
            nginx.process.wait()
            nginx.start()
            assert nginx.get("site2.example")[0] == 308
            go_on.set()
            assert receive(connection).endswith(b"late")


def test_an_nginx_that_outlived_its_supervisor_is_ended_before_the_next_start(nginx: Running) -> None:
    nginx.serve([site(1, kind="redirect")])
    old = nginx.process
    assert old is not None
    threading.Thread(target=old.wait, daemon=True).start()  # reaped as init would
    nginx.start()
    assert old.poll() is not None
    assert nginx.get("site1.example")[0] == 308
    assert not [pid for pid in (nginx.folder / "nginx.pid").read_text().split() if int(pid) == old.pid]


def test_a_pid_file_that_names_another_process_is_not_believed(nginx: Running) -> None:
    nginx.apply([])
    (nginx.folder / "nginx.pid").write_text(f"{os.getpid()}\n")
    assert not nginx.nginx.is_running()
    nginx.nginx.prepare_start()  # and does not end this test
    nginx.start()
    assert nginx.nginx.is_running()


def test_a_test_leaves_a_running_nginx_alone(nginx: Running) -> None:
    applied = nginx.serve([site(1, kind="redirect")])
    pid = nginx.nginx.pid()
    process = Process(nginx.folder)
    for _ in range(3):
        assert process.test(nginx.folder / "live" / "nginx.conf") is None
    assert nginx.nginx.pid() == pid
    assert nginx.nginx.live_release() == applied.release
    assert nginx.nginx.served_serials({"x": "unknown.example"}) == {"x": None}
    assert (nginx.folder / "nginx-tls.sock").is_socket()


def test_sockets_that_somebody_else_holds_are_taken_over(nginx: Running) -> None:
    """Also the test of a release gets them: binding would fail, as it does for others than root below port 1024."""
    with socket.socket() as http, socket.socket() as https:
        for held, port in ((http, nginx.http), (https, nginx.https)):
            held.bind((nginx.host, port))
            held.listen()
        instance = NGINX(
            nginx.settings,
            nginx.folder,
            nginx.nginx.layout.instance_id,
            held=lambda: (http.fileno(), https.fileno()),
        )
        applied = instance.apply([site(1, kind="redirect")], {}, THUMBPRINT)
        with nginx.error_log.open("wb") as errors:
            process = subprocess.Popen(
                instance.command(),
                env={"PATH": os.environ["PATH"], **instance.environment()},
                pass_fds=(http.fileno(), https.fileno()),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            until(lambda: instance.live_release() == applied.release)
            assert nginx.get("site1.example")[0] == 308
            assert instance.apply([site(2, kind="redirect")], {}, THUMBPRINT).reloaded
            assert nginx.get("site2.example")[0] == 308
        finally:
            process.terminate()
            process.wait(10)


def test_it_runs_without_root(nginx: Running) -> None:
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    nginx.nginx.layout = replace(nginx.nginx.layout, user="")
    with upstream() as server:
        sites = [site(1, target=target(server), ssl=True, tls={"site1.example": "1-a"}, force_https=False,
                      custom_code="proxy_request_buffering on;")]  # fmt: skip
        nginx.apply(sites, {"1-a": certificate("site1.example")})
        if os.geteuid() == 0:
            for path in (nginx.folder, *nginx.folder.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        with nginx.error_log.open("wb") as errors:
            process = subprocess.Popen(
                nginx.nginx.command(),
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                env={"PATH": os.environ["PATH"]},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            until(lambda: nginx.nginx.live_release(), what=nginx.error_log.read_text())
            assert nginx.get("site1.example", method="POST", body=b"x" * 500_000, tls=True)[0] == 200
            assert "alert" not in nginx.error_log.read_text()
            assert "emerg" not in nginx.error_log.read_text()
        finally:
            process.terminate()
            process.wait(10)


def test_workers_of_root_s_nginx_are_not_root_and_can_spool(nginx: Running) -> None:
    with upstream() as server:
        nginx.serve([site(1, target=target(server), custom_code="proxy_request_buffering on;")])
        assert nginx.get("site1.example", method="POST", body=b"x" * 500_000)[0] == 200
        if os.geteuid() == 0:
            assert {worker.uids().real == 0 for worker in nginx.workers()} == {False}
    assert "[alert]" not in nginx.error_log.read_text()
    assert "[crit]" not in nginx.error_log.read_text()


def test_a_thousand_sites_with_long_names_and_a_certificate_go_live(nginx: Running) -> None:
    shared = certificate("many.example")
    sites = [
        Site(
            number,
            (f"{'a' * 60}.{'b' * 60}.{'c' * 60}.site{number}.example", f"site{number}.example"),
            "proxy",
            Target("http", "backend.test", 8080),
            tls={f"site{number}.example": "1-a"} if number % 10 == 0 else {},
            ssl=True,
        )
        for number in range(1, 1001)
    ]
    applied = nginx.serve(sites, {"1-a": shared})
    assert applied.quarantined == {}
    assert nginx.get("site1000.example")[0] == 308
    assert nginx.nginx.served_serials({"1-a": "site1000.example"}) == {"1-a": serial(shared)}
    assert nginx.apply(sites[:-1], {"1-a": shared}).reloaded
    assert "[warn]" not in nginx.error_log.read_text()


def test_an_entry_is_validated_as_a_node_would_and_nothing_is_left(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)  # too long for a socket's name: another folder is used
    deep.mkdir()
    for parent in (tmp_path, deep):
        assert validate_site(site(1), parent) is None
        assert (
            validate_site(site(1, ssl=True, hsts=True, target=Target("https", "never.test", 443, "/a")), parent) is None
        )
        assert validate_site(site(1, kind="redirect", ssl=True), parent) is None
        message = validate_site(site(1, custom_code="expires 1d;\nproxy_buffering perhaps;"), parent)
        assert message == 'invalid value "perhaps" in "proxy_buffering" directive, it must be "on" or "off"'
        assert "not allowed" in (validate_site(site(1, custom_code="root /;"), parent) or "")
        assert "not a domain" in (validate_site(site(1, domains=("a b",)), parent) or "")
    assert list(tmp_path.iterdir()) == [deep]
    assert list(deep.iterdir()) == []


def test_a_missing_nginx_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_version() >= (1, 20, 0)
    with pytest.raises(NGINXMissing, match="apt-get install nginx"):
        installed_version("no-such-nginx")
    with pytest.raises(NGINXMissing):
        Process(tmp_path, "no-such-nginx").test(tmp_path / "nginx.conf")
    with pytest.raises(NGINXMissing, match="is no NGINX"):
        installed_version("true")


def test_lines_of_the_error_log_have_a_level() -> None:
    assert read_log_line("2026/11/23 18:09:47 [emerg] 10#10: no\n") == ("CRITICAL", "no")
    assert read_log_line("nginx: [warn] odd") == ("WARNING", "odd")
    assert read_log_line("2026/11/23 18:09:47 [error] 10#11: *5 refused") == ("ERROR", "*5 refused")
    assert read_log_line(json.dumps({"a": 1})) == ("INFO", '{"a": 1}')
