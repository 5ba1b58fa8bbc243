"""Swarm's own commands, given by hand under load, behave as well as ours do."""

import json

from tests.lab import files
from tests.support.labcluster import EXITS, NODE, PORTS, Cluster, variant
from tests.support.wait import until


def wait_updated(cluster: Cluster, state: str) -> None:
    until(lambda: cluster.update_state() == state, 900, f"the update is {state}", every=2)


def test_docker_service_update_and_rollback(cluster: Cluster) -> None:
    before = cluster.images()
    image = cluster.other()
    with cluster.load("service-update") as load:
        cluster.docker("service", "update", "--detach", "--image", image, NODE)
        wait_updated(cluster, "completed")
        assert cluster.runs(image)
    cluster.check_websockets(load.report().check())
    # What was done by hand is told.
    assert any("by hand" in line for line in cluster.ops("status").done().document["drift"])
    with cluster.load("service-rollback") as load:
        cluster.docker("service", "rollback", "--detach", NODE)
        wait_updated(cluster, "rollback_completed")
    cluster.check_websockets(load.report().check())
    assert cluster.images() == before


def test_docker_service_update_to_an_image_that_ends_at_once(cluster: Cluster) -> None:
    good, before = cluster.images(), cluster.tasks()
    image = variant(cluster.lab, cluster.image, "exits", *EXITS)
    with cluster.load("bad-update") as load:
        cluster.docker("service", "update", "--detach", "--image", image, NODE)
        wait_updated(cluster, "rollback_completed")
        cluster.whole()
    load.report().check()
    assert cluster.images() == good
    after = cluster.tasks()
    assert sum(before[name] != after[name] for name in before) <= 1


def test_docker_stack_deploy(cluster: Cluster) -> None:
    image = cluster.other()
    manager = cluster.hosts[0]
    manager.write("/run/stack.yml", (files.CHECKOUT / "docker-compose.swarm.yml").read_text())
    spec = json.loads(cluster.docker("service", "inspect", NODE))[0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    ports = json.loads(cluster.docker("service", "inspect", PORTS))[0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    variables = {
        "LYTTLE_IMAGE": image,
        "LYTTLE_PORTS_IMAGE": ports["Image"],
        "ACME_DIRECTORY_URL": cluster.lab.services.ca.directory_url,
    }
    for secret in spec["Secrets"]:
        variables[f"SECRET_{secret['File']['Name'].upper()}"] = secret["SecretName"]
    override = ["services:", "  lyttlenginx:", "    configs:"]
    names = []
    for config in spec["Configs"]:
        if config["File"]["Name"] == "/etc/lyttle-ops/database-ca.pem":
            variables["CONFIG_DATABASE_CA"] = config["ConfigName"]
        else:
            override.append(f"      - {{source: acme_ca, target: {config['File']['Name']}}}")
            names.append((config["ConfigName"], config["File"]["Name"]))
    ((acme_ca, path),) = names
    override += ["    environment:", f"      ACME_CA_FILE: {path}"]
    override += ["configs:", f"  acme_ca: {{external: true, name: {acme_ca}}}"]
    manager.write("/run/lab.yml", "\n".join(['version: "3.9"', *override, ""]))
    settings = " ".join(f"{name}='{value}'" for name, value in variables.items())
    command = "docker stack deploy --with-registry-auth -c /run/stack.yml -c /run/lab.yml lyttlenginx"
    with cluster.load("stack-deploy") as load:
        manager.run(f"{settings} {command}")
        wait_updated(cluster, "completed")
    cluster.check_websockets(load.report().check())
    assert cluster.runs(image)
    cluster.ops("deploy", "--image", cluster.image).done()  # and ours goes on from there
    assert cluster.runs(cluster.image)
