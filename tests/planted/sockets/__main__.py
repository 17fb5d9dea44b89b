"""Plant a load in a separate network namespace, and keep it until stdin ends: LOAD AMOUNT.

To run it manually, from the folder tests: `python3 -m planted.sockets tcp_small_messages 1000`.
"""

import inspect
import json
import os
import resource
import sys
from collections.abc import Callable

from planted.sockets import afterwards, events, io_uring, netlink, paced, pipe, raw, tcp, tun, udp, unix, vsock, xdp
from planted.sockets.common import Truth
from planted.sockets.network import enter_own_network

# Every public function of a family's file is a load.
LOADS: dict[str, Callable[..., Truth]] = {
    name: load
    for family in (tcp, udp, unix, raw, netlink, vsock, pipe, paced, afterwards, tun, io_uring, xdp, events)
    for name, load in vars(family).items()
    if inspect.isfunction(load) and load.__module__ == family.__name__ and not name.startswith("_")
}


def main(arguments: list[str]) -> None:
    serve = arguments[0] == "--serve"
    if not serve or arguments[1] == "own":
        enter_own_network()
    print("{}" if serve else f"pid {os.getpid()}", flush=True)
    if not serve:
        print(json.dumps(LOADS[arguments[0]](int(arguments[1]))), flush=True)
    for line in sys.stdin:
        load, *amounts = line.split()
        print(json.dumps(LOADS[load](*map(int, amounts))), flush=True)


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    main(sys.argv[1:])
