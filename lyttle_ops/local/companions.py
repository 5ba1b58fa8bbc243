"""What a local cluster needs beside its nodes and is not worth a process each: the CA's DNS and the demo upstream.

    python -m lyttle_ops.local.companions --dns HOST:PORT --upstream HOST:PORT --nodes ADDRESS,… --probe PORT

Runs until SIGTERM.
"""

import argparse
import signal
import sys
import threading
from types import FrameType

from lyttle_ops.local.dns import NameServer
from lyttle_ops.local.upstream import serve


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lyttle_ops.local.companions", description=__doc__)
    parser.add_argument("--dns", required=True, metavar="HOST:PORT")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT")
    parser.add_argument("--nodes", required=True, metavar="ADDRESS,…", help="what every name resolves to")
    parser.add_argument("--probe", type=int, required=True, help="only nodes that accept this port are named")
    options = parser.parse_args(arguments)
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    host, _, port = options.dns.rpartition(":")
    names = NameServer(host, int(port), options.nodes.split(","), probe=options.probe)
    host, _, port = options.upstream.rpartition(":")
    try:
        names.start()
        upstream = serve(host, int(port))
    except OSError as exc:
        sys.stderr.write(f"the DNS server or the demo upstream cannot listen: {exc}\n")
        return 1
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    ended.wait()
    upstream.shutdown()
    upstream.server_close()
    names.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
