"""site.yml: from three fresh hosts to HTTPS on each of them; again, and nothing changes; what was altered is mended."""

import pytest

from tests.support.labcluster import DOMAIN, Cluster, on_lab
from tests.support.load import Load
from tests.support.wait import until

pytestmark = on_lab


@pytest.mark.core
def test_fresh_hosts_serve_https_on_their_own_addresses_and_upstreams_see_the_client(cluster: Cluster) -> None:
    for host in cluster.hosts:
        assert cluster.serves(host)
    with Load(cluster.addresses, DOMAIN, 15, cluster.lab.acme_root) as load:
        load.wait(60, 60)
    load.report().check()
    # Requests left this machine from its address on the lab's bridge.
    words = ("service", "logs", "--raw", "demo")
    until(lambda: f"client {cluster.lab.network.gateway}" in cluster.docker(*words).splitlines(), 30, "its log", 1)
    seen = {line for line in cluster.docker(*words).splitlines() if line.startswith("client ")}
    assert seen <= {f"client {cluster.lab.network.gateway}", f"client {cluster.lab.network.client}"}


def test_the_second_run_changes_nothing(cluster: Cluster) -> None:
    again = cluster.site()
    assert again.code == 0, again.output[-4000:]
    assert again.changed == []
    assert set(again.recap.values()) == {0}


def test_a_file_and_a_setting_altered_by_hand_are_reported_and_mended_alone(cluster: Cluster) -> None:
    server = cluster.hosts[-1]  # of NFS
    exports = "/etc/exports.d/lyttle-ops.exports"
    before = server.read(exports)
    server.run(f"echo '# by hand' >> {exports}")
    cluster.docker("node", "update", "--label-add", "lyttle.edge=maybe", "n2")
    mended = cluster.site()
    assert mended.code == 0, mended.output[-4000:]
    assert server.read(exports) == before
    label = ("node", "inspect", "--format", '{{index .Spec.Labels "lyttle.edge"}}', "n2")
    assert cluster.docker(*label) == "true"
    roles = {(host, task.split(" : ")[0]) for host, task in mended.changed}
    assert roles == {(server.name, "nfs"), ("n2", "swarm")}, mended.changed
    cluster.whole()
