"""Now and then: one node alone, another mode, new secrets, an image without registry, backup and restore, teardown."""

import time
from pathlib import Path

from tests.support.labcluster import DOMAIN, NODE, Cluster, on_lab, refuses
from tests.support.wait import until


def mode(cluster: Cluster) -> str:
    return cluster.docker("service", "ls", "--filter", f"name={NODE}", "--format", "{{.Mode}} {{.Replicas}}")


def changes_nothing(cluster: Cluster) -> None:
    """site.yml changes nothing, given the image that runs."""
    if not cluster.runs(cluster.image):
        cluster.ops("deploy", "--image", cluster.image).done()
    again = cluster.site()
    assert again.code == 0, again.output[-4000:]
    assert again.changed == []


def test_one_node_alone_then_replicated_then_on_all_fails_no_request(cluster: Cluster) -> None:
    stays = cluster.leader()
    with cluster.load("one-alone", hosts=[stays]) as load:
        load.phase("one alone")
        cluster.ops("rollback", "--scale-one", "--reason", "look into it").done()
        assert set(cluster.tasks()) == {stays.name}
        for host in cluster.hosts:
            if host is not stays:
                until(lambda host=host: refuses(host.address), 30, f"{host.name} refuses", every=0.5)
        load.phase("all")
        cluster.ops("rollback", "--global").done()
        cluster.whole()
        load.phase("replicated")
        cluster.ops("rollback", "--replicated").done()
        assert mode(cluster) == "replicated 1/1"
        load.phase("all again")
        cluster.ops("rollback", "--global").done()
        cluster.whole()
    load.report().check()
    assert mode(cluster) == f"global {len(cluster.hosts)}/{len(cluster.hosts)}"
    assert [record["result"] for record in cluster.releases()[:4]] == ["succeeded"] * 4


def test_a_new_master_key_and_password_fail_no_request(cluster: Cluster) -> None:
    kept = cluster.hosts[0].read("/etc/lyttle-ops/secrets/master_key")
    with cluster.load("new-secrets") as load:
        for secret in ("master_key", "admin"):
            done = cluster.play("rotate_secrets", rotate=secret)
            assert done.code == 0, done.output[-4000:]
    cluster.check_websockets(load.report().check())
    keys = {host.read("/etc/lyttle-ops/secrets/master_key") for host in cluster.hosts}
    assert len(keys) == 1
    assert kept not in keys
    cluster.log_out()
    domain = f"new-key-{int(time.time())}.example.test"
    cluster.publish(domain)
    for host in cluster.hosts:
        until(lambda host=host: cluster.serves(host, domain), 180, f"{host.name} serves {domain}", every=1)
    changes_nothing(cluster)


@on_lab
def test_new_database_passwords_fail_no_request(cluster: Cluster) -> None:
    with cluster.load("new-passwords") as load:
        done = cluster.play("rotate_secrets", rotate="database")
        assert done.code == 0, done.output[-4000:]
    cluster.check_websockets(load.report().check())
    changes_nothing(cluster)


def test_an_image_without_registry_is_brought_to_the_nodes(cluster: Cluster) -> None:
    name = "lyttle-ops:by-hand"
    cluster.docker("pull", "--quiet", cluster.newer)
    cluster.docker("tag", cluster.newer, name)  # on a manager alone, as `make image` there leaves it
    cluster.ops("deploy", "--image", name).done()
    (image,) = cluster.images()
    assert image.startswith(f"{name}-")  # and the start of its id: another content is another name
    for host in cluster.hosts:
        assert host.run(["docker", "image", "ls", "--quiet", image]).strip(), host.name
    assert cluster.releases()[0]["image"] == image
    cluster.ops("rollback", "--to", cluster.image).done()


def served(cluster: Cluster, domain: str) -> bool:
    try:
        return cluster.serves(cluster.hosts[1], domain)
    except OSError:
        return False


@on_lab
def test_what_was_lost_comes_back_from_a_backup(cluster: Cluster, tmp_path: Path) -> None:
    domain = f"kept-{int(time.time())}.example.test"
    entry = cluster.publish(domain)
    until(lambda: cluster.serves(cluster.hosts[1], domain), 180, f"{domain} is served", every=1)
    done = cluster.play("backup", backup_folder=str(tmp_path))
    assert done.code == 0, done.output[-4000:]
    (backup,) = tmp_path.glob("*.tar")
    cluster.api("DELETE", f"/proxy/{entry}")
    until(lambda: not served(cluster, domain), 60, "it is gone", every=1)
    with cluster.load("restore") as load:
        done = cluster.play("restore", restore_from=str(backup), restore_confirm="yes")
        assert done.code == 0, done.output[-4000:]
    load.report().check()
    cluster.log_out()
    for host in cluster.hosts:
        until(lambda host=host: cluster.serves(host, domain), 180, f"{host.name} serves {domain}", every=1)


@on_lab
def test_a_lost_server_of_the_database_is_replaced_and_no_node_serves_an_empty_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = cluster.play("backup", backup_folder=str(tmp_path))
    assert done.code == 0, done.output[-4000:]
    (backup,) = tmp_path.glob("*.tar")
    if not cluster.runs(cluster.image):
        cluster.ops("deploy", "--image", cluster.image).done()
    version = "pg_lsclusters --no-header | awk '$2 == \"lyttle\" {print $1}'"
    cluster.hosts[0].run(f"pg_dropcluster --stop $({version}) lyttle && rm -r /etc/lyttle-ops/database-ca")
    with cluster.load("database-lost") as load:
        load.phase("a new server")
        done = cluster.play("site", 1800, "--skip-tags", "stack")
        assert done.code == 0, done.output[-4000:]
        load.phase("deployed against the empty one")  # as a hurried operator does
        refused = cluster.play("site", 1800, "--tags", "stack")
        assert refused.code != 0
        assert "it has no entry" in refused.output, refused.output[-6000:]
        load.phase("restored")
        done = cluster.play("restore", restore_from=str(backup), restore_confirm="yes")
        assert done.code == 0, done.output[-4000:]
        assert "no node uses this server yet" in done.output
        load.phase("led to it")
        done = cluster.play("site", 1800, "--tags", "stack")
        assert done.code == 0, done.output[-4000:]
    cluster.check_websockets(load.report().check())
    cluster.log_out()
    assert cluster.leader()
    domain = f"new-server-{int(time.time())}.example.test"
    cluster.publish(domain)
    for host in cluster.hosts:
        until(lambda host=host: cluster.serves(host, domain), 180, f"{host.name} serves {domain}", every=1)


def test_a_teardown_keeps_the_data_and_site_brings_the_cluster_back(cluster: Cluster) -> None:
    before = cluster.certificate(cluster.hosts[0])
    refused = cluster.play("teardown", teardown_confirm="yes")
    assert refused.code != 0
    assert "demo use the network lyttlenginx_upstreams" in refused.output
    cluster.whole()
    cluster.docker("service", "rm", "demo")
    done = cluster.play("teardown", teardown_confirm="yes")
    assert done.code == 0, done.output[-4000:]
    for host in cluster.hosts:
        assert refuses(host.address)
        assert not host.run("docker ps --quiet --filter label=com.docker.stack.namespace=lyttlenginx").strip()
    back = cluster.site()
    assert back.code == 0, back.output[-4000:]
    cluster.start_upstream()
    cluster.log_out()
    cluster.whole()
    assert cluster.certificate(cluster.hosts[0]) == before  # nothing was ordered anew
    assert DOMAIN in str(cluster.api("GET", "/proxy"))
