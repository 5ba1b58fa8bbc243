"""The upstream of load tests: echo of requests, POST bodies and websockets, on the standard library alone.

    python3 upstream.py [PORT]

One file, so that it can run in a container of any image with Python (as a Docker config). It answers each request with
one line of JSON: path, method, body_bytes, and `client`, the address that X-Forwarded-For names. Each client address is
written to standard output when it is first seen. A websocket (`Upgrade: websocket`) gets its messages back.
"""

import asyncio
import base64
import hashlib
import json
import signal
import sys

WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
seen: set[str] = set()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await exchange(reader, writer):
            pass
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # who hangs up, or speaks no HTTP, gets no answer
    finally:
        writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request and its answer; whether another may follow on this connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    client = headers.get("x-forwarded-for") or str(writer.get_extra_info("peername")[0])
    if client not in seen:
        seen.add(client)
        say(f"client {client}")
    if headers.get("upgrade", "").lower() == "websocket":
        key = headers.get("sec-websocket-key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET).digest()).decode()
        switch = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\n{switch}".encode())
        await echo(reader, writer)
        return False
    length = int(headers.get("content-length", 0))
    received = len(await reader.readexactly(length)) if length else 0
    told = {"path": path, "method": method, "host": headers.get("host", ""), "client": client, "body_bytes": received}
    body = json.dumps(told) + "\n"
    last = headers.get("connection", "").lower() == "close"
    answer = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{answer}{'Connection: close' + chr(13) + chr(10) if last else ''}\r\n{body}".encode())
    await writer.drain()
    return not last


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Frames of a client back to it, until its close frame (RFC 6455 section 5.2)."""
    while True:
        first, second = await reader.readexactly(2)
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4)
        payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(await reader.readexactly(size)))
        long = size.to_bytes(2, "big") if 125 < size < 65536 else size.to_bytes(8, "big") if size > 125 else b""
        kind = 0xA if first & 0xF == 0x9 else first & 0xF  # a ping is answered with a pong
        writer.write(bytes([first & 0xF0 | kind, len(long) // 8 + 126 if long else size]) + long + payload)
        await writer.drain()
        if kind == 0x8:
            return


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", port, backlog=512)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    say(f"upstream listens on {server.sockets[0].getsockname()[1]}")
    await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8080))
