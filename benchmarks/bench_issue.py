"""How long a certificate takes: ensure_certificate against the bare acme library, and the fast path against a SELECT.

    .venv/bin/python benchmarks/bench_issue.py [--orders N] [--looks N]

A private PostgreSQL and a private pebble (no delays, no nonce rejects) on this machine; medians and p99.
"""

import argparse
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from acme import challenges, client, crypto_util, messages
from josepy.jwa import ES256

from lyttle_ops.certificates.account import new_private_key
from lyttle_ops.certificates.model import Outcome
from lyttle_ops.db.migrate import migrate
from lyttle_ops.local.postgres import PostgresServer
from tests.support import loopback
from tests.support.ca import Lab, TestNode, running_lab


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100, help="certificates through ensure_certificate")
    parser.add_argument("--bare", type=int, default=5, help="certificates through the bare library (2 s each)")
    parser.add_argument("--looks", type=int, default=5000, help="calls of the fast path")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lyttle-bench-"))
    folder.chmod(0o755)
    host = loopback.address()
    server = PostgresServer(folder / "postgres", host, loopback.port(host), secrets.token_urlsafe(12))
    try:
        server.start()
        with running_lab() as lab:
            measure(lab, server, arguments)
    finally:
        server.stop("immediate")
        with suppress(OSError):
            shutil.rmtree(folder)


def measure(lab: Lab, server: PostgresServer, arguments: argparse.Namespace) -> None:
    node = TestNode(server.url(), lab.direct, "bench", register=False)
    try:
        migrate(node.database)
        lab.answerer.thumbprint = node.certificates.account_thumbprint()

        def issue(index: int) -> None:
            assert node.certificates.ensure_certificate([f"bench{index}.example.com"]) is Outcome.ISSUED

        issue(-1)  # registers the account
        ours = timed(issue, arguments.orders)

        def look(_: int) -> None:
            assert node.certificates.ensure_certificate(["bench0.example.com"]) is Outcome.READY

        def select(_: int) -> None:
            with node.database.connection() as connection:
                connection.execute("SELECT 1").fetchone()

        timed(look, 200), timed(select, 200)
        looks, selects = timed(look, arguments.looks), timed(select, arguments.looks)
        with node.database.connection() as connection:
            bare_selects = timed(lambda _: connection.execute("SELECT 1").fetchone(), arguments.looks)

        bare = BareClient(lab, node)
        library = timed(bare.issue, arguments.bare)
        bare.close()
    finally:
        node.close()
    print(f"{'':44}{'median':>10}{'p99':>10}")
    show("ensure_certificate, new certificate", ours)
    show("bare acme library, its own polling", library)
    show("ensure_certificate, nothing to do", looks)
    show("SELECT 1 through the pool", selects)
    show("SELECT 1 on a held connection", bare_selects)


class BareClient:
    """What the library's documentation shows: new_order, answer_challenge, poll_and_finalize."""

    def __init__(self, lab: Lab, node: TestNode) -> None:
        self._key = node.certificates._account.key()
        self._network = client.ClientNetwork(self._key, alg=ES256, verify_ssl=str(lab.ca.root))
        directory = client.ClientV2.get_directory(lab.ca.directory_url, self._network)
        self._client = client.ClientV2(directory, self._network)
        registration = messages.RegistrationResource(uri=node.certificates._account.url(), body=messages.Registration())
        self._network.account = registration

    def issue(self, index: int) -> None:
        csr = crypto_util.make_csr(new_private_key(), [f"bare{index}.example.com"])
        order = self._client.new_order(csr)
        for authorization in order.authorizations:
            for challenge in authorization.body.challenges:
                if isinstance(challenge.chall, challenges.HTTP01):
                    self._client.answer_challenge(challenge, challenge.chall.response(self._key))
        assert self._client.poll_and_finalize(order).fullchain_pem

    def close(self) -> None:
        self._network.session.close()


def timed(call: Callable[[int], object], times: int) -> list[float]:
    took = []
    for index in range(times):
        started = time.perf_counter()
        call(index)
        took.append(time.perf_counter() - started)
    return took


def show(what: str, took: list[float]) -> None:
    p99 = statistics.quantiles(took, n=100)[98] if len(took) > 1 else took[0]
    print(f"{what:44}{statistics.median(took) * 1000:8.3f}ms{p99 * 1000:8.3f}ms  (n={len(took)})")


if __name__ == "__main__":
    main()
