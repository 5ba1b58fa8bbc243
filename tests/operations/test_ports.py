"""Held ports with real processes: what clients notice while holders and nodes come, go and die."""

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lyttle_ops.ports import protocol
from lyttle_ops.ports.holder import BACKLOG, _open_listener
from lyttle_ops.ports.protocol import LEASE
from tests.support import loopback, ports
from tests.support.ports import Clients, Machine, ask
from tests.support.wait import until


@pytest.fixture
def machine() -> Iterator[Machine]:
    with ports.machine() as made:
        yield made


def refused(address: str) -> bool:
    try:
        ask(address, timeout=1.0)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_a_node_serves_what_the_holder_bound_over_both_families(machine: Machine) -> None:
    machine.holder()
    machine.borrower("n1").says("serving")
    assert [ask(address) for address in machine.addresses] == ["n1"] * 4


def test_the_queue_is_long_and_ipv6_is_apart() -> None:
    port = ports.port6()
    opened = [_open_listener(protocol.listener("http", f"{host}:{port}")) for host in ("[::]", "0.0.0.0")]
    try:
        longest = min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
        for each in opened:
            assert each is not None  # V6ONLY: else [::] has IPv4 on that port as well
            # Of a listening socket tcpi_sacked is the longest its queue may get (tcp_diag; `ss -ltn` calls it Send-Q).
            assert struct.unpack_from("I", each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0] == longest
    finally:
        protocol.close(each for each in opened if each is not None)


def test_the_holder_keeps_one_capability_and_no_group(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has capabilities to drop")
    low = f"{machine.host}:81"
    holder = machine.holder(HTTP_LISTEN=low)
    holder.says("Holding")
    lines = Path(f"/proc/{holder.process.pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    assert status["Uid"].split() == [str(ports.USER)] * 4
    assert status["Groups"].split() == []
    assert (int(status["CapPrm"], 16), int(status["CapEff"], 16)) == (1 << 10, 1 << 10)
    # Closed after the lease, and bound again below 1024, long after it was root.
    holder.says("closed until one does", LEASE + 5)
    machine.borrower("n1", low).says("serving")
    assert ask(low) == "n1"


def test_a_start_first_update_of_the_node_refuses_nobody(machine: Machine) -> None:
    machine.holder()
    old = machine.borrower("old")
    old.says("serving")
    with Clients(machine.addresses) as clients:
        until(lambda: clients.answered("old") > 100)
        new = machine.borrower("new")
        until(lambda: clients.answered("new") > 100)
        assert old.stop() == 0
        gone = clients.answered("old")
        until(lambda: clients.answered("new") > 1000)
        assert clients.answered("old") <= gone + len(machine.addresses)
    assert clients.failures == []
    new.says("serving")


def test_a_successor_takes_over_and_nobody_notices(machine: Machine) -> None:
    old = machine.holder()
    machine.borrower("n1").says("serving")
    with Clients(machine.addresses) as clients:
        until(lambda: clients.answered("n1") > 100)
        new = machine.holder()
        new.says("Took over from the previous holder")
        old.says("Handed over to a successor")
        new.says("Node n1 has the ports")
        # The lease is with the successor: nothing is closed when the time of one has passed. Its predecessor waits as
        # long until it is told to stop: an end of its own would be a failure in Swarm's eyes.
        time.sleep(LEASE + 1)
        assert old.process.poll() is None
        assert old.stop() == 0
        third = machine.holder()
        third.says("Node n1 has the ports")
        assert new.stop() == 0
        until(lambda: clients.answered("n1") > 1000)
    assert clients.failures == []


def test_a_holder_that_was_killed_gets_its_sockets_back(machine: Machine) -> None:
    first = machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    with Clients(machine.addresses) as clients:
        until(lambda: clients.answered("n1") > 100)
        first.kill()
        node.says("The holder of the ports is gone")
        second = machine.holder()
        second.says("Node n1 handed back")
        node.says("The ports have a holder again")
        # What was handed back outlives the one who had it.
        newer = machine.borrower("n2")
        newer.says("serving")
        assert node.stop() == 0
        before = clients.answered("n2")
        until(lambda: clients.answered("n2") > before + 500)
    assert clients.failures == []


def test_without_a_node_clients_are_refused_and_the_next_node_is_served_again(machine: Machine) -> None:
    holder = machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    assert node.stop() == 0
    started = time.monotonic()
    until(lambda: all(refused(address) for address in machine.addresses), 15, "refused", every=0.2)
    assert LEASE - 3 < time.monotonic() - started < 15
    machine.borrower("n2").says("serving")
    assert [ask(address) for address in machine.addresses] == ["n2"] * 4
    assert holder.process.poll() is None


def test_a_node_that_is_killed_loses_its_lease(machine: Machine) -> None:
    machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    node.kill()
    until(lambda: all(refused(address) for address in machine.addresses), 15, "refused", every=0.2)


def test_a_restart_within_the_lease_only_makes_clients_wait(machine: Machine) -> None:
    machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    with Clients(machine.addresses) as clients:
        until(lambda: clients.answered("n1") > 100)
        node.kill()
        machine.borrower("n2")
        until(lambda: clients.answered("n2") > 100)
    # What the dead one had taken is lost with it, at most one connection an address.
    assert len(clients.failures) <= len(machine.addresses)
    assert not any("Refused" in failure for failure in clients.failures)


def test_a_stranger_is_hung_up_on(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    holder = machine.holder()
    machine.borrower("n1").says("serving")
    # This process is root; it may pass the folder's permissions, and still gets nothing.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(5)
        connection.connect(str(machine.socket))
        assert connection.recv(100) == b""
    holder.says("of user 0: only user")
    assert machine.socket.stat().st_mode & 0o777 == 0o600
    assert ask(machine.http) == "n1"


def test_an_address_of_a_stranger_ends_the_holder_with_its_name(machine: Machine) -> None:
    host, port = protocol.split(machine.https)
    with socket.socket() as stranger:
        stranger.bind((host, port))
        stranger.listen()
        holder = machine.holder()
        assert holder.wait(25) == 1
    last = holder.output[-1]
    assert f"{machine.https} is in use on this machine" in last
    assert f"sport = :{port}" in last
    assert machine.http not in last


def test_an_address_this_machine_does_not_have_ends_the_holder_at_once(machine: Machine) -> None:
    holder = machine.holder(HTTP_LISTEN="192.0.2.1:8080")
    assert holder.wait() == 1
    assert "HTTP_LISTEN: 192.0.2.1:8080 cannot be bound: Cannot assign requested address" in holder.output[-1]


def test_no_holder_is_a_reason(machine: Machine) -> None:
    node = machine.borrower("n1", patience=2)
    assert node.wait() == 1
    assert f"could not be had from their holder at {machine.socket} within 2 s: No such file" in node.text()
    assert "service `ports`" in node.text()


def test_a_holder_of_other_addresses_is_a_reason(machine: Machine) -> None:
    machine.holder().says("Holding")
    other = f"{machine.host}:{loopback.port(machine.host)}"
    node = machine.borrower("n1", machine.http, other, patience=2)
    assert node.wait() == 1
    assert f"it does not hold {other}, but" in node.text()
    assert "the same HTTP_LISTEN, HTTPS_LISTEN and API_LISTEN" in node.text()


def test_a_successor_with_other_addresses_keeps_what_stays(machine: Machine) -> None:
    old = machine.holder()
    machine.borrower("n1", machine.http).says("serving")
    new_https = f"{machine.host}:{loopback.port(machine.host)}"
    with Clients([machine.http]) as clients:
        until(lambda: clients.answered("n1") > 50)
        machine.holder(HTTPS_LISTEN=new_https).says("Node n1 has the ports")
        old.stop()
        machine.borrower("n2", machine.http, new_https).says("serving")
    assert clients.failures == []
    assert ask(new_https) == "n2"
    assert refused(machine.https)


def test_a_successor_that_cannot_bind_changes_nothing(machine: Machine) -> None:
    old = machine.holder()
    machine.borrower("n1").says("serving")
    with socket.socket() as stranger:
        stranger.bind((machine.host, loopback.port(machine.host)))
        stranger.listen()
        taken = f"{machine.host}:{stranger.getsockname()[1]}"
        new = machine.holder(HTTPS_LISTEN=taken)
        assert new.wait(30) == 1
        assert taken in new.output[-1]
    assert old.process.poll() is None
    machine.borrower("n2").says("serving")
    assert ask(machine.https) in ("n1", "n2")


def test_a_successor_that_dies_leaves_a_predecessor_that_says_so(machine: Machine) -> None:
    old = machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    new = machine.holder()
    new.says("Node n1 has the ports")
    old.says("waiting to be stopped")
    assert old.process.poll() is None
    new.kill()
    assert old.wait() == 1
    assert "the holder that took over is gone" in old.output[-1]
    machine.holder().says("Node n1 handed back")
    assert ask(machine.http) == "n1"


def test_two_holders_that_start_at_once_become_one(machine: Machine) -> None:
    first, second = machine.holder(), machine.holder()
    until(lambda: "Handed over" in first.text() + second.text())
    machine.borrower("n1").says("serving")
    holding = [each for each in (first, second) if "Handed over" not in each.text()]
    assert len(holding) == 1
    holding[0].says("Node n1 has the ports")


def test_a_holder_whose_socket_was_removed_ends_and_its_sockets_move_on(machine: Machine) -> None:
    lost = machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    with Clients(machine.addresses) as clients:
        machine.socket.unlink()
        assert lost.wait() == 1
        assert "was replaced or removed" in lost.output[-1]
        machine.holder().says("Node n1 handed back")
        until(lambda: clients.answered("n1") > 100)
    assert clients.failures == []


def test_a_frozen_holder_holds_up_nobody_that_serves(machine: Machine) -> None:
    frozen = machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    frozen.signal(signal.SIGSTOP)
    with Clients(machine.addresses) as clients:
        successor = machine.holder()
        successor.says("does not answer within")
        frozen.kill()  # as an engine does when its time to stop has passed
        successor.says("Node n1 handed back", 20)
        until(lambda: clients.answered("n1") > 100)
    assert clients.failures == []


def test_a_node_that_stops_while_the_holder_is_away_hands_nothing_back(machine: Machine) -> None:
    first = machine.holder()
    node = machine.borrower("n1")
    node.says("serving")
    first.kill()
    node.says("The holder of the ports is gone")
    assert node.stop() == 0
    assert all(refused(address) for address in machine.addresses)
    second = machine.holder()
    second.says("Holding")
    assert "handed back" not in second.text()


def test_sigterm_ends_a_holder_at_once_and_clients_do_not_notice(machine: Machine) -> None:
    holder = machine.holder()
    machine.borrower("n1").says("serving")
    with Clients(machine.addresses) as clients:
        started = time.monotonic()
        assert holder.stop() == 0
        assert time.monotonic() - started < 3  # its stop_grace_period
        until(lambda: clients.answered("n1") > 100)
    assert clients.failures == []
