"""HTTP/1.1 and HTTP/2 clients for the load generator: small, cheap, and exact about how a request ended.

A request ends in one of three ways: an `Answer`; `Closed` (the connection ended, or the server said that it did not
and will not process the request, before any byte of the answer) when the connection had answered before, so that an
idempotent request may be sent again (RFC 9112 section 9.3.1, RFC 9113 sections 6.8 and 8.7); `Failed` in every other
case. Which of the two an early end is depends on the connection: one that never answered is fresh, and its early end
is `Failed`.
"""

import asyncio
import os
import ssl
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

GOAWAY = 0x7  # frame type, RFC 9113 section 6.8


class Failed(Exception):
    """A failed request; its text says how."""


class Closed(Exception):
    """The connection ended before any byte of the answer, and it had answered before."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: bytes
    body: bytes


def error_text(exc: BaseException) -> str:
    """One short line for an exception of the network."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {exc.reason or exc}"
    if isinstance(exc, OSError):
        return (os.strerror(exc.errno) if exc.errno else str(exc) or type(exc).__name__).lower()
    return f"{type(exc).__name__}: {exc}"


class Http1(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self.answered = 0
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._reset()

    @property
    def idle(self) -> bool:
        return self.open and self._waiting is None

    async def ask(self, request: bytes) -> Answer:
        """Raises Closed or Failed."""
        assert self._waiting is None
        if not self.open or self._transport is None:
            raise self._end("closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._reset()
        self._transport.write(request)
        try:
            return await self._waiting
        except asyncio.CancelledError:  # the deadline: nothing more is known of this connection
            self.open = False
            self._transport.abort()
            raise
        finally:
            self._waiting = None

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.close()  # bytes that nobody asked for: what follows could belong to no request
            return
        self._buffer += data
        try:
            answer = self._parse()
        except (ValueError, IndexError) as exc:
            self.close()
            self._waiting.set_exception(Failed(f"no HTTP/1.1 answer: {exc}"))
            return
        if answer is not None:
            self.answered += 1
            if self._last:
                self.close()
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(self._end(error_text(exc) if exc else "closed"))

    # -- parts

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._head: bytes | None = None
        self._length: int | None = None  # None: chunked
        self._last = False

    def _end(self, how: str) -> Failed | Closed:
        if self._buffer or self._head is not None:
            return Failed(f"{how} within the answer")
        if self.answered:
            return Closed(how)
        return Failed(f"{how} before the answer, on a fresh connection")

    def _parse(self) -> Answer | None:
        """The answer once it is whole. Raises ValueError or IndexError for what is no answer."""
        while self._head is None:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return None
            self._buffer = rest
            if head[9:10] == b"1":  # 1xx: the answer is still to come
                continue
            self._head = bytes(head)
            lower = b"\r\n" + self._head.lower() + b"\r\n"
            self._last = b"\r\nconnection: close\r\n" in lower
            if b"\r\ntransfer-encoding: chunked\r\n" in lower:
                self._length = None
            elif bytes(head[9:12]) in (b"204", b"304"):
                self._length = 0
            else:
                _, found, rest_of = lower.partition(b"\r\ncontent-length:")
                if not found:
                    raise ValueError("its length is not told, so nobody can tell whether it is whole")
                self._length = int(rest_of.split(b"\r\n", 1)[0])
        if not self._head.startswith(b"HTTP/1."):
            raise ValueError(f"it begins with {self._head[:20]!r}")
        body = self._whole_body()
        return None if body is None else Answer(int(self._head[9:12]), self._head, body)

    def _whole_body(self) -> bytes | None:
        if self._length is not None:
            if len(self._buffer) > self._length:
                raise ValueError("bytes after its end")
            return bytes(self._buffer) if len(self._buffer) == self._length else None
        body, position = b"", 0  # answers here are one small packet: parsing anew for each packet costs nothing
        while (end := self._buffer.find(b"\r\n", position)) >= 0:
            size = int(self._buffer[position:end].split(b";")[0], 16)
            start = end + 2
            if len(self._buffer) < start + size + 2:
                return None
            if self._buffer[start + size : start + size + 2] != b"\r\n":
                raise ValueError("a chunk without its end")
            if size == 0:
                if len(self._buffer) > start + 2:
                    raise ValueError("bytes after its end")
                return body
            body += self._buffer[start : start + size]
            position = start + size + 2
        return None


class _Stream:
    """One HTTP/2 request."""

    def __init__(self, waiting: "asyncio.Future[Answer]") -> None:
        self.waiting = waiting
        self.status = 0
        self.head = b""
        self.body = bytearray()


class Http2(asyncio.Protocol):
    """One HTTP/2 connection; many requests at once.

    GOAWAY is kept from h2, which takes it for the end of the connection, while streams up to the named one go on.
    """

    def __init__(self) -> None:
        self.open = False  # takes new requests
        self.ended = False  # by the server
        self.answered = 0
        self._transport: asyncio.Transport | None = None
        self._peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._streams: dict[int, _Stream] = {}
        self._input = bytearray()
        self._promised = -1  # the last stream that GOAWAY promised to answer

    @property
    def available(self) -> bool:
        """Whether it takes one more request; servers allow 100 streams at the least (RFC 9113 section 6.5.2)."""
        return self.open and len(self._streams) < 100

    async def ask(self, authority: str, path: str) -> Answer:
        """A GET. Raises Closed or Failed."""
        if not self.open:
            raise self._end("closed", 0)
        number = self._peer.get_next_available_stream_id()
        stream = self._streams[number] = _Stream(asyncio.get_running_loop().create_future())
        self._peer.send_headers(
            number,
            [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", path)],
            end_stream=True,
        )
        self._flush()
        try:
            return await stream.waiting
        except asyncio.CancelledError:  # the deadline: the next request gets another connection
            self.close()
            raise
        finally:
            self._streams.pop(number, None)
            if not self.open and not self._streams:
                self._shut()

    def close(self) -> None:
        """Takes no more requests; those under way go on."""
        self.open = False
        if not self._streams:
            self._shut()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True
        self._peer.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._input += data
        try:
            while len(self._input) >= 9:
                size = 9 + int.from_bytes(self._input[:3], "big")
                if len(self._input) < size:
                    break
                frame, self._input = bytes(self._input[:size]), self._input[size:]
                if frame[3] == GOAWAY:
                    self._go_away(frame[9:])
                else:
                    self._events(self._peer.receive_data(frame))
        except (h2.exceptions.H2Error, ValueError, KeyError) as exc:
            self.ended = True
            self._end_all(f"no HTTP/2: {exc}", broken=True)
            self._shut()
            return
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open, self.ended = False, True
        self._end_all(error_text(exc) if exc else "closed")

    # -- parts

    def _events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            number = getattr(event, "stream_id", None)
            stream = self._streams.get(number) if number else None
            if stream is None or stream.waiting.done():
                if isinstance(event, h2.events.DataReceived):
                    self._peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.ResponseReceived):
                headers = dict(event.headers)
                stream.status = int(headers[b":status"])
                stream.head = b"\r\n".join(name + b": " + value for name, value in headers.items())
            elif isinstance(event, h2.events.DataReceived):
                stream.body += event.data
                self._peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.answered += 1
                stream.waiting.set_result(Answer(stream.status, stream.head, bytes(stream.body)))
            elif isinstance(event, h2.events.StreamReset):
                refused = event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM and not stream.status
                end = Failed(f"stream reset, code {int(event.error_code)}")
                stream.waiting.set_exception(self._end("refused stream", number or 0) if refused else end)

    def _go_away(self, payload: bytes) -> None:
        last, code = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF, int.from_bytes(payload[4:8], "big")
        self.open, self.ended = False, True
        self._promised = last
        for number, stream in self._streams.items():
            if stream.waiting.done():
                continue
            if code:
                stream.waiting.set_exception(Failed(f"GOAWAY with error code {code}"))
            elif number > last:  # not and never processed, says RFC 9113 section 6.8
                stream.waiting.set_exception(self._end("GOAWAY", number))

    def _end(self, how: str, number: int) -> Failed | Closed:
        if number and number <= self._promised:
            return Failed(f"{how} after a GOAWAY that promised the answer")
        if self.answered:
            return Closed(how)
        return Failed(f"{how} before the answer, on a fresh connection")

    def _end_all(self, how: str, broken: bool = False) -> None:
        for number, stream in self._streams.items():
            if stream.waiting.done():
                continue
            if broken:
                stream.waiting.set_exception(Failed(how))
            elif stream.status:
                stream.waiting.set_exception(Failed(f"{how} within the answer"))
            else:
                stream.waiting.set_exception(self._end(how, number))

    def _flush(self) -> None:
        data = self._peer.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _shut(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()
