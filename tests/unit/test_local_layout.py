"""The local cluster's addresses: refused with a sentence when they cannot be used."""

import pytest

from lyttle_ops.local.layout import Layout, LayoutInvalid


def test_every_socket_of_a_cluster_is_distinct_and_below_the_kernels_own_ports() -> None:
    for offset in (0, 16000):
        endpoints = Layout(nodes=5, port_offset=offset).endpoints()
        assert len({(e.host, e.port) for e in endpoints}) == len(endpoints) == 5 + 5 * 3
        assert all(1024 < e.port < 32768 for e in endpoints)


@pytest.mark.parametrize("base", ["10.0.0", "127.1", "127.1.2.3", "127.300.1", "", "127.0.0;x"])
def test_a_base_outside_loopback_is_refused(base: str) -> None:
    with pytest.raises(LayoutInvalid, match=r"three octets of 127\.0\.0\.0/8"):
        Layout(base)


@pytest.mark.parametrize("nodes", [0, -1, 201])
def test_a_number_of_nodes_that_has_no_addresses_is_refused(nodes: int) -> None:
    with pytest.raises(LayoutInvalid, match="accepted: 1 to 200"):
        Layout(nodes=nodes)


def test_an_unknown_node_is_answered_with_the_ones_there_are() -> None:
    with pytest.raises(LayoutInvalid, match="n1, n2"):
        Layout(nodes=2).node_named("n3")
