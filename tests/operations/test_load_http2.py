"""The load generator's HTTP/2: what RFC 9113 allows to send again is a retry, everything else a failure."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import h2.config
import h2.events
import pytest
from h2.connection import H2Connection
from hyperframe.frame import GoAwayFrame

from tests.support.faulty import Server, loaded, serving


def http2(server: Server, connection: ssl.SSLSocket, serve: Callable[[int, H2Connection], bool]) -> None:
    """Serve streams of one connection; `serve` gets the count of requests and says whether to answer this one."""
    peer = H2Connection(h2.config.H2Configuration(client_side=False))
    peer.initiate_connection()
    connection.sendall(peer.data_to_send())
    while data := connection.recv(65536):
        for event in peer.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                path = dict(event.headers)[b":path"].decode()
                if serve(event.stream_id, peer):
                    peer.send_headers(event.stream_id, [(":status", "200")])
                    peer.send_data(event.stream_id, path.encode(), end_stream=True)
        connection.sendall(peer.data_to_send())


def go_away(connection: ssl.SSLSocket, last: int, code: int = 0) -> None:
    connection.sendall(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())


def http2_behaviour(
    at: Callable[[Server, ssl.SSLSocket, H2Connection, int], bool],
    faulty: int = 81,
) -> Callable[[Server, ssl.SSLSocket], None]:
    """The stream `faulty` of the first connection is treated by `at`: the fortieth, unless told."""

    def behave(server: Server, connection: ssl.SSLSocket) -> None:
        def serve(stream: int, peer: H2Connection) -> bool:
            return at(server, connection, peer, stream) if number == 1 and stream == faulty else True

        number = server.count("connections")
        http2(server, connection, serve)

    return behave


def refuses_the_stream(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    server.count("faults")
    peer.reset_stream(stream, 7)  # REFUSED_STREAM
    return False


def goes_away_before_the_stream(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    server.count("faults")
    connection.sendall(peer.data_to_send())
    go_away(connection, max(0, stream - 2))
    return False


def closes_the_connection(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    server.count("faults")
    connection.sendall(peer.data_to_send())
    connection.shutdown(socket.SHUT_RDWR)
    return False


def goes_away_and_answers(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    connection.sendall(peer.data_to_send())
    go_away(connection, 2**31 - 1)
    return True


def resets_the_stream(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    server.count("faults")
    peer.reset_stream(stream, 2)  # INTERNAL_ERROR
    return False


def answers_503(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    server.count("faults")
    peer.send_headers(stream, [(":status", "503")], end_stream=True)
    return False


def breaks_off_the_answer(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    peer.send_headers(stream, [(":status", "200")])
    return closes_the_connection(server, connection, peer, stream)


def breaks_its_promise(server: Server, connection: ssl.SSLSocket, peer: H2Connection, stream: int) -> bool:
    go_away(connection, stream)
    return closes_the_connection(server, connection, peer, stream)


@pytest.mark.parametrize("at", [refuses_the_stream, goes_away_before_the_stream, closes_the_connection])
def test_http2_streams_that_were_not_processed_cost_a_retry(tmp_path: Path, at: Callable[..., bool]) -> None:
    with serving(tmp_path, http2_behaviour(at), "h2") as server:
        report = loaded(server, "http2").check()
    # Streams that were on their way when the connection closed are sent again too.
    assert report.total.retries >= server.counts["faults"] == 1
    if at is refuses_the_stream:
        assert report.total.retries == 1


@pytest.mark.parametrize("at", [refuses_the_stream, goes_away_before_the_stream, closes_the_connection])
def test_the_same_on_a_fresh_connection_is_a_failure(tmp_path: Path, at: Callable[..., bool]) -> None:
    with serving(tmp_path, http2_behaviour(at, faulty=1), "h2") as server:
        report = loaded(server, "http2")
    assert server.counts["faults"] == 1
    assert report.total.failures >= 1, str(report)
    assert any("fresh connection" in error for error in report.errors), str(report)


def test_http2_graceful_end_costs_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, http2_behaviour(goes_away_and_answers), "h2") as server:
        report = loaded(server, "http2").check()
    assert report.total.retries == 0


@pytest.mark.parametrize("at", [resets_the_stream, answers_503, breaks_off_the_answer, breaks_its_promise])
def test_each_fault_of_an_http2_stream_is_a_failure(tmp_path: Path, at: Callable[..., bool]) -> None:
    with serving(tmp_path, http2_behaviour(at), "h2") as server:
        report = loaded(server, "http2")
    assert report.total.failures >= server.counts["faults"] == 1, str(report)
    if at in (resets_the_stream, answers_503):
        assert report.total.failures == 1, str(report)


def test_http2_closed_before_it_ever_answered_is_a_failure(tmp_path: Path) -> None:
    def behave(server: Server, connection: ssl.SSLSocket) -> None:
        connection.recv(65536)
        connection.close()

    with serving(tmp_path, behave, "h2") as server:
        report = loaded(server, "http2", 20)
    assert report.total.failures == report.total.requests
