"""The load generator's process: paced requests, and the account of how each ended. `tests.support.load` starts it.

Open loop: each address has its own even rate, and a request starts when it is due, however slow the others are; its
time is counted from then, so a server that stalls cannot make itself look good by holding the generator up. Two things
keep an overload from feeding itself: at most `UNDERWAY` requests to an address at once (those fail by their deadline if
they are not answered), and beats that this process slept through are not made up for. Both are reported as *withheld*.

What counts (DESIGN.md, "Held ports"): an error on a fresh connection, after any byte of the answer, on a request that
is not idempotent, a status of 4xx or 5xx, an answer that is not the whole answer to this very request, and silence of
`TIMEOUT` seconds are *failures*. An idempotent request on a reused connection that was closed before any byte of the
answer is sent once more on a fresh connection, and counted as a *retry*.

- `http`, `https`: GET on a fresh connection, on the plain and on the TLS port (a new handshake each). Over plain HTTP a
  redirect is an answer too.
- `keepalive`: GET over TLS on connections that stay open, the one that idled longest first.
- `http2`: GET on one connection with many streams.
- `post`: POST over TLS, always on a fresh connection and never sent twice. A server may close an idle connection while
  a request is on its way, and a client cannot tell whether a POST was processed then; RFC 9110 section 9.2.2 forbids it
  to guess, so a sound client does not send one on a connection that idled.
- `websocket`: one an address, an echo each second. That the server closes it is no failure: it is reported with how
  long it lived, and the client connects again. An echo that does not come, or an end before the first echo, is a
  failure.
"""

import asyncio
import itertools
import json
import ssl
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import websockets.asyncio.client
import websockets.exceptions

from tests.support.load_account import Tally, Target, total
from tests.support.load_clients import Answer, Closed, Failed, Http1, Http2, error_text

TIMEOUT = 10.0  # seconds for one request, its retry included
UNDERWAY = 100  # requests to an address
KEPT = 8  # idle keep-alive connections of an address
POST_BYTES = 512
FIRST_FAILURES = 20


class Generator:
    """Everything of one load. Made inside a running event loop; raises OSError and ssl.SSLError for a wrong `ca`."""

    def __init__(
        self,
        addresses: list[str],
        host: str,
        rate: float,
        ca: Path,
        http_port: int,
        https_port: int,
        mix: dict[str, int],
    ) -> None:
        self.host = host
        self.ports = {False: http_port, True: https_port}
        self.gap = len(addresses) / rate  # seconds between two requests to one address
        self.mix = mix
        self.targets = {address: Target(address) for address in addresses}
        self.phases: dict[str, dict[str, Tally]] = {}
        self.phase("start")
        self.first_failures: list[dict[str, Any]] = []
        self.errors: Counter[str] = Counter()
        self.websockets: list[dict[str, Any]] = []
        self.worst_lag = 0.0
        self.withheld = 0
        self.started = time.monotonic()
        self._paths = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._contexts = {protocol: _context(ca, protocol) for protocol in ("http/1.1", "h2")}

    def phase(self, name: str) -> None:
        """Requests that are due from now on are counted in the phase `name` as well."""
        self.current = self.phases.setdefault(name, {kind: Tally() for kind in self.mix})

    # -- pace

    def start(self) -> None:
        for number, target in enumerate(self.targets.values()):
            if any(kind != "websocket" for kind in self.mix):
                self._spawn(self._pace(target, number * self.gap / len(self.targets)))
            if self.mix.get("websocket"):
                self._spawn(self._websocket(target))
        self._pacing = set(self._tasks)

    async def stop(self) -> None:
        """No new requests; those under way come to their end."""
        for task in self._pacing:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIMEOUT + 1)
        for target in self.targets.values():
            target.pause()
            target.hang_up()

    async def _pace(self, target: Target, offset: float) -> None:
        kinds = _spread({kind: share for kind, share in self.mix.items() if kind != "websocket"})
        due = time.monotonic() + offset
        for kind in itertools.cycle(kinds):
            if not target.active.is_set():
                await target.active.wait()
                due = time.monotonic()
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                self.worst_lag = max(self.worst_lag, -wait)
                missed = int(-wait / self.gap)
                self.withheld += missed
                due += missed * self.gap
            if target.underway >= UNDERWAY:
                self.withheld += 1
            elif target.active.is_set():  # still
                target.underway += 1
                self._spawn(self._request(target, kind, due))
            due += self.gap

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one request

    async def _request(self, target: Target, kind: str, due: float) -> None:
        tally = Tally(requests=1)
        phase = self.current
        path = f"/load/{kind}/{next(self._paths)}"
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await self._ask(target, kind, path, tally)
            _judge(kind, path, answer)
            tally.milliseconds.append((time.monotonic() - due) * 1000)
            target.answered()
        except Exception as exc:  # whatever it is, it is a failed request
            tally.failures = 1
            if isinstance(exc, TimeoutError) and not exc.args:
                exc = Failed(f"no answer within {TIMEOUT:.0f} s")
            self._failed(target, kind, exc)
        finally:
            target.underway -= 1
        phase[kind].add(tally)
        target.tally.add(tally)

    async def _ask(self, target: Target, kind: str, path: str, tally: Tally) -> Answer:
        """Raises Failed, OSError (ssl.SSLError included) or TimeoutError."""
        if kind == "http2":
            try:
                return await (await self._http2(target)).ask(self.host, path)
            except Closed:
                tally.retries = 1
            try:
                return await (await self._http2(target)).ask(self.host, path)
            except Closed as exc:
                raise Failed(f"{exc} once more, on the retry") from exc
        head = f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n"
        if kind == "keepalive":
            connection = target.kept.popleft() if target.kept else await self._connect(target, True)
            while not connection.open and target.kept:  # known to be closed before anything was sent
                connection = target.kept.popleft()
            try:
                if not connection.open:
                    connection = await self._connect(target, True)
                try:
                    return await connection.ask(f"{head}\r\n".encode())
                except Closed:
                    tally.retries = 1
                    connection = await self._connect(target, True)
                    return await connection.ask(f"{head}\r\n".encode())
            finally:
                if connection.idle and len(target.kept) < KEPT and target.active.is_set():
                    target.kept.append(connection)
                else:
                    connection.close()
        body = ""
        if kind == "post":
            body = "x" * POST_BYTES
            head = head.replace("GET", "POST", 1) + f"Content-Length: {len(body)}\r\n"
        connection = await self._connect(target, kind != "http")
        try:
            return await connection.ask(f"{head}Connection: close\r\n\r\n{body}".encode())
        finally:
            connection.close()

    async def _connect(self, target: Target, tls: bool) -> Http1:
        _, connection = await asyncio.get_running_loop().create_connection(
            Http1,
            target.address,
            self.ports[tls],
            ssl=self._contexts["http/1.1"] if tls else None,
            server_hostname=self.host if tls else None,
        )
        return connection

    async def _http2(self, target: Target) -> Http2:
        """A connection that takes requests; who asks while it is made waits for the same one."""
        while True:
            if target.http2 is not None and target.http2.available:
                return target.http2
            if target.connecting is None:
                if target.http2 is not None:
                    target.http2.close()
                target.connecting = asyncio.get_running_loop().create_task(self._connect_http2(target))
            connection = await asyncio.shield(target.connecting)
            if connection.available or connection.ended:
                return connection  # ended by the server: that is for the request to tell

    async def _connect_http2(self, target: Target) -> Http2:
        try:
            async with asyncio.timeout(TIMEOUT):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    Http2, target.address, self.ports[True], ssl=self._contexts["h2"], server_hostname=self.host
                )
            if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                transport.abort()
                raise Failed("the server did not choose HTTP/2")
            target.http2 = connection
            return connection
        finally:
            target.connecting = None

    def _failed(self, target: Target, kind: str, exc: BaseException) -> None:
        text = str(exc) if isinstance(exc, Failed) else error_text(exc)
        self.errors[f"{kind}: {text}"] += 1
        if len(self.first_failures) < FIRST_FAILURES:
            self.first_failures.append(
                {"time": round(time.time(), 3), "address": target.address, "kind": kind, "error": text}
            )

    # -- websockets

    async def _websocket(self, target: Target) -> None:
        while True:
            await target.active.wait()
            began = time.monotonic()
            tally = Tally()
            try:
                await self._websocket_life(target, tally)
            except (OSError, TimeoutError, websockets.exceptions.WebSocketException) as exc:
                tally.requests += 1
                tally.failures += 1
                self._failed(target, "websocket", exc)
            finally:
                self._add_echoes(target, tally)
                target.websocket_since = None
            await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))

    def _add_echoes(self, target: Target, tally: Tally) -> None:
        self.current["websocket"].add(tally)
        target.tally.add(tally)

    async def _websocket_life(self, target: Target, tally: Tally) -> None:
        """From the handshake to the end. Raises what a handshake can raise, and TimeoutError for a missing echo."""
        async with websockets.asyncio.client.connect(
            f"wss://{self.host}/load/websocket",
            host=target.address,
            port=self.ports[True],
            ssl=self._contexts["http/1.1"],
            server_hostname=self.host,
            open_timeout=TIMEOUT,
            close_timeout=1,
            ping_interval=None,
            proxy=None,  # an HTTP proxy of the environment lies not before hosts of a test
        ) as peer:
            opened, began = time.time(), time.monotonic()
            target.websocket_since, number = round(opened, 3), 1
            try:
                for number in itertools.count(1):
                    sent = time.monotonic()
                    echo = Tally(requests=1)
                    await peer.send(f"echo {number}")
                    async with asyncio.timeout(TIMEOUT):
                        said = await peer.recv()
                    if said != f"echo {number}":
                        raise OSError(0, f"an echo of something else: {said[:40]!r}")
                    echo.milliseconds.append((time.monotonic() - sent) * 1000)
                    self._add_echoes(target, echo)
                    await asyncio.sleep(max(0.0, sent + 1 - time.monotonic()))
            except websockets.exceptions.ConnectionClosed as exc:
                if number == 1:
                    raise  # one that never echoed was no websocket
                self.websockets.append(
                    {
                        "address": target.address,
                        "opened": round(opened, 3),
                        "closed": round(time.time(), 3),
                        "lived_s": round(time.monotonic() - began, 3),
                        "how": f"close frame {exc.rcvd.code}" if exc.rcvd else "closed without a close frame",
                    }
                )

    # -- report

    def report(self) -> dict[str, Any]:
        kinds = {kind: Tally() for kind in self.mix}
        for tallies in self.phases.values():
            for kind, tally in tallies.items():
                kinds[kind].add(tally)
        return {
            "seconds": round(time.monotonic() - self.started, 1),
            "total": total(kinds),
            "kinds": {kind: tally.figures() for kind, tally in kinds.items()},
            "phases": {name: total(tallies) for name, tallies in self.phases.items()},
            "addresses": {address: target.figures() for address, target in self.targets.items()},
            "first_failures": self.first_failures,
            "errors": dict(self.errors.most_common()),
            "websockets": self.websockets,
            "withheld": self.withheld,
            "worst_lag_ms": round(self.worst_lag * 1000, 1),
        }


def _context(ca: Path, protocol: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols([protocol])
    return context


def _spread(mix: dict[str, int]) -> list[str]:
    """One round of kinds in their shares, each spread evenly over it."""
    places = [((turn + 0.5) / share, kind) for kind, share in mix.items() for turn in range(share)]
    return [kind for _, kind in sorted(places)]


def _judge(kind: str, path: str, answer: Answer) -> None:
    """Raises Failed unless `answer` is a good answer to this very request."""
    redirected = kind == "http" and answer.status in (301, 302, 307, 308)
    if not 200 <= answer.status < 300 and not redirected:
        raise Failed(f"status {answer.status}")
    if path.encode() not in (answer.head if redirected else answer.body):
        raise Failed("an answer to something else")
    if kind == "post" and f'"body_bytes": {POST_BYTES}'.encode() not in answer.body:
        raise Failed("the upstream did not get the whole body")


def say(what: dict[str, Any]) -> None:
    """One line of JSON to who started this process."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def run(generator_arguments: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """Load until a command "stop" or the end of standard input, or for `seconds`; commands are answered on standard
    output, a line of JSON each. Returns the report."""
    generator = Generator(**generator_arguments)
    generator.start()
    if seconds is not None:
        await asyncio.sleep(seconds)
    else:
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        say({"ready": True})
        while line := await commands.readline():
            command = json.loads(line)
            if command["do"] == "stop":
                break
            say(await _obey(generator, command))
    await generator.stop()
    return generator.report()


async def _obey(generator: Generator, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "report":
        return generator.report()
    if command["do"] == "phase":
        generator.phase(command["name"])
        return {}
    target = generator.targets[command["address"]]
    if command["do"] == "resume":
        target.resume()
        return {}
    target.pause()
    while target.underway:  # each ends within TIMEOUT
        await asyncio.sleep(0.02)
    target.hang_up()
    return {}
