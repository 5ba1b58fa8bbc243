"""Images that cannot serve: the first node shows it, the others are untouched, the old version serves on all."""

from typing import Any

import pytest

from tests.support.labcluster import EXITS, Cluster, Command, variant

SITE = "/opt/lyttle-ops/lib/python3*/site-packages/lyttle_ops/nginx/templates/site.conf.j2"
NEVER_HEALTHY = [
    "USER root",
    r"RUN printf '#!/bin/sh\necho this image is sick; exit 1\n' > /usr/local/bin/healthcheck.sh",
    "USER lyttle",
]
# Its own checks ask the sockets of the task and find everything in order.
SERVES_ERRORS = ["USER root", f"RUN sed -i 's/^{{{{ server.body }}}}/    return 500;\\n&/' {SITE}", "USER lyttle"]


def deploy(cluster: Cluster, image: str) -> tuple[Command, dict[str, Any]]:
    """The command's end and the history's newest record; the old version serves on all nodes, untouched but one."""
    good, before = cluster.images(), cluster.tasks()
    assert len(good) == 1
    ended = cluster.ops("deploy", "--image", image, "--reason", "bad image")
    assert ended.code == 4, str(ended)
    cluster.whole()
    assert cluster.images() == good
    after = cluster.tasks()
    touched = [name for name in before if before[name] != after[name]]
    assert len(touched) <= 1, f"{touched} were touched"
    record = cluster.releases()[0]
    assert record["result"] == "failed"
    assert record["image"] == image
    return ended, record


@pytest.mark.parametrize(
    ("name", "lines", "reason"),
    [
        pytest.param("exits", EXITS, "this image is broken", id="exits"),
        pytest.param("sick", NEVER_HEALTHY, "health", id="sick"),
    ],
)
def test_an_image_that_never_gets_up_fails_no_request(
    cluster: Cluster, name: str, lines: list[str], reason: str
) -> None:
    image = variant(cluster.lab, cluster.image, name, *lines)
    with cluster.load(f"image-{name}") as load:
        ended, record = deploy(cluster, image)
    load.report().check()
    for told in (str(ended.document), record["message"]):
        assert reason in told.lower(), told
        assert any(host.name in told for host in cluster.hosts), told


@pytest.mark.core
def test_an_image_that_is_healthy_and_serves_errors_is_stopped_by_the_proof(cluster: Cluster) -> None:
    image = variant(cluster.lab, cluster.image, "errors", *SERVES_ERRORS)
    with cluster.load("image-errors") as load:
        load.phase("deploy")
        ended, record = deploy(cluster, image)
        load.phase("after")
        load.wait(int(cluster.lab.rate * 5), 60)
    report = load.report()
    # Only one node, only from its start until it was put back.
    failing = [figures for figures in report.addresses.values() if figures.failures]
    assert len(failing) <= 1, str(report)
    assert report.total.failures <= cluster.lab.rate / len(cluster.hosts) * 90, str(report)
    assert report.phases["after"].failures == 0, str(report)
    told = {error for error in report.errors if not error.startswith("websocket: ")}  # a library's own words
    assert {error.split(": ")[1] for error in told} <= {"status 500"}, str(report)
    assert "500" in str(ended.document)
    assert "500" in record["message"]
    result = ended.document.get("error", {}).get("result") or ended.document.get("result") or {}
    assert result["failures_seen"] > 0
