"""From a single LyttleNGINX, its NGINX on a node's own ports and its database, to the cluster."""

import socket
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import files
from tests.support.labcluster import DOMAIN, Cluster, Machine, Play, refuses
from tests.support.lyttlenginx import EARLY, LATER, Old, issue
from tests.support.quicklab import QuickLab
from tests.support.wait import until

# Its database is made beside the cluster's own, which on the lab is a node's.
pytestmark = pytest.mark.parametrize("provisioned", ["quick"], indirect=True)

OLD, UPSTREAM = "old-nginx", "old-upstream"  # containers
PORT = 18080  # of the upstream
NAMES = ("old.example.test", "www.old.example.test")
CONFIGURATION = f"""
events {{}}
http {{
    access_log off;
    server {{ listen 80; server_name {" ".join(NAMES)}; return 301 https://$host$request_uri; }}
    server {{
        listen 443 ssl;
        server_name {" ".join(NAMES)};
        ssl_certificate /etc/old/chain.pem;
        ssl_certificate_key /etc/old/key.pem;
        location / {{ proxy_pass http://UPSTREAM; }}
    }}
}}
"""


@contextmanager
def single_instance(cluster: Cluster, host: Machine, keeper: Machine, chain: str, key: str) -> Iterator[None]:
    """A server on the ports of `host`, which no node has meanwhile, as with swarm_edge=false; it leads to `keeper`."""
    label(cluster, host, "false")
    run = ["docker", "run", "--detach", "--network=host", "--user=root", "--volume=/etc/old:/etc/old:ro"]
    run += ["--no-healthcheck", "--restart=unless-stopped"]
    try:
        until(lambda: refuses(host.address), 60, f"no node serves on {host.name}", every=0.5)
        for each in (host, keeper):
            each.run("mkdir -p /etc/old")
        keeper.write("/etc/old/upstream.py", (files.CHECKOUT / "tests/support/upstream.py").read_text())
        words = ["--entrypoint=python3", cluster.image, "/etc/old/upstream.py", str(PORT)]
        keeper.run([*run, f"--name={UPSTREAM}", *words])
        host.write("/etc/old/nginx.conf", CONFIGURATION.replace("UPSTREAM", f"{keeper.address}:{PORT}"))
        host.write("/etc/old/chain.pem", chain)
        host.write("/etc/old/key.pem", key)
        words = ["--entrypoint=nginx", cluster.image, "-c", "/etc/old/nginx.conf", "-g", "daemon off;"]
        host.run([*run, f"--name={OLD}", *words])
        until(lambda: shown(host), 30, "the old server serves", every=0.5)
        yield
    finally:
        host.run(["docker", "rm", "--force", OLD], check=False)
        keeper.run(["docker", "rm", "--force", UPSTREAM], check=False)
        label(cluster, host, "true")


def label(cluster: Cluster, host: Machine, edge: str) -> None:
    cluster.docker("node", "update", "--label-add", f"lyttle.edge={edge}", host.name)


def shown(host: Machine) -> str:
    """The certificate (PEM) that `host` shows for the old server's names, whoever serves there; empty without one."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.address, 443), 5) as plain,
            context.wrap_socket(plain, server_hostname=NAMES[0]) as connection,
        ):
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")
    except OSError:
        return ""


def task_there(host: Machine) -> str:
    """The Swarm task that answers on `host`; empty while the old server does, or nobody."""
    try:
        with urllib.request.urlopen(f"http://{host.address}/.well-known/lyttle-ops", timeout=5) as answer:
            return str(answer.headers["X-Lyttle-Task"] or "")
    except OSError:
        return ""


def test_the_single_instance_hands_over_its_host_and_can_take_it_back(cluster: Cluster) -> None:
    assert isinstance(cluster.lab, QuickLab)
    keeper, _, host = cluster.hosts
    url = cluster.lab.database("lyttlenginx_old")
    chain, key = issue(*NAMES)
    leaf = chain[: chain.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"
    database = Old(url)
    database.run(EARLY + LATER)
    database.entry(";".join(NAMES), f"http://{keeper.address}:{PORT}", ssl=True)
    database.certificate(";".join(NAMES), chain, key)

    def migrate(step: str, **variables: str) -> Play:
        where = {"migrate_source_url": url, "migrate_old_host": host.name, "migrate_old_container": OLD}
        play = cluster.play("migrate", migrate_step=step, **where, **variables)
        assert url.partition("@")[0] not in play.output  # the password
        assert "PRIVATE KEY" not in play.output
        return play

    def done(play: Play) -> str:
        assert play.code == 0, play.output[-4000:]
        return " ".join(play.output.split())

    others = [each for each in cluster.hosts if each is not host]
    with single_instance(cluster, host, keeper, chain, key), cluster.load("migrate", hosts=others) as load:
        too_early = migrate("verify")
        assert too_early.code != 0
        assert "repeat migrate_step=import" in too_early.output

        assert "Entries: 1 imported, 0 here already" in done(migrate("import"))
        for each in others:
            until(lambda each=each: shown(each) == leaf, 60, f"{each.name} shows the old certificate", every=0.5)
        assert "Entries: 0 imported, 1 here already" in done(migrate("import"))
        assert f"answer for {len(NAMES)} domains as {host.address} does" in done(migrate("verify"))

        unasked = migrate("switch")
        assert unasked.code != 0
        assert "migrate_confirm=yes" in unasked.output
        assert shown(host) == leaf
        assert task_there(host) == ""

        for answer in ("switch", "back", "switch"):
            done(migrate(answer, migrate_confirm="yes"))
            runs = host.run(["docker", "inspect", "--format", "{{.State.Running}}", OLD]).strip()
            assert runs == ("true" if answer == "back" else "false")
            assert bool(task_there(host)) == (answer == "switch")
            assert shown(host) == leaf
        cluster.whole()
        assert cluster.serves(host, DOMAIN)

        kept = migrate("remove")
        assert kept.code != 0
        assert "Not confirmed, nothing was changed" in kept.output
        assert "is gone from" in done(migrate("remove", migrate_confirm="yes"))
        assert OLD not in host.run(["docker", "ps", "--all", "--format", "{{.Names}}"])
    # No node of those ended; a change of what is served gives websockets the two minutes of NGINX's old workers.
    assert [end for end in load.report().check().websockets if end.lived_s < 118] == []
    found = next(each for each in cluster.api("GET", "/proxy")["items"] if NAMES[0] in each["domains"])
    assert found["ssl"]
    cluster.api("DELETE", f"/proxy/{found['id']}")
