"""Run a xenstored without domains: `python -m xenpy.pv.xenstore --socket PATH`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from xenpy.errors import XenpyError
from xenpy.pv.xenstore.loops import SelectorLoop
from xenpy.pv.xenstore.server import Xenstore
from xenpy.pv.xenstore.socket import SocketServer
from xenpy.signals import handled


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xenpy.pv.xenstore", description="a xenstored on a unix socket")
    parser.add_argument(
        "--socket", type=Path, required=True, help="where clients connect; give it to them as XENSTORED_PATH"
    )
    parser.add_argument("--verbose", action="store_true", help="log every request")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    store = Xenstore()
    store.trace_requests = arguments.verbose
    with handled((signal.SIGTERM, signal.SIGINT), lambda *_: loop.stop()) as wake:
        loop = SelectorLoop(wake)
        try:
            server = SocketServer(store, arguments.socket, loop)
        except XenpyError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
        loop.run()
        server.close()
        loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
