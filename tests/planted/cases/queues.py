"""Packets outside sockets: in a tun device, a netfilter queue, a queueing discipline, a namespace without users."""

import contextlib
from collections.abc import Iterator

from planted import held_by_fd
from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError
from planted.nfqueue import nfqueue
from planted.packets import first_fragments, neighbour_queue, qdisc_backlog

_OUTSIDE = ("PacketsOutsideSockets", "LargeHolder")


@contextlib.contextmanager
def _tun_queue() -> Iterator[PlantedTruth]:
    with held_by_fd.tun_queue() as load:
        yield PlantedTruth(
            Answer.LEAK,
            _OUTSIDE,
            ("AllocPage",),
            load.packet_bytes,
            pids=(load.pid,),
            fds=(load.fd,),
            names=(load.device,),
        )


@contextlib.contextmanager
def _nfqueue() -> Iterator[PlantedTruth]:
    with contextlib.ExitStack() as stack:
        try:
            load = stack.enter_context(nfqueue())
        except RuntimeError as error:
            raise UnavailableError("the kernel has no netfilter queues") from error
        yield PlantedTruth(
            Answer.LEAK, _OUTSIDE, ("AllocPage",), load.packet_bytes, pids=(load.pid,), names=(f"queue {load.queue}",)
        )


@contextlib.contextmanager
def _qdisc_backlog() -> Iterator[PlantedTruth]:
    with qdisc_backlog(sender_exits=False) as load:
        yield PlantedTruth(
            Answer.LEAK,
            (*_OUTSIDE, "UnsentData"),
            ("AllocPage",),
            load.packet_bytes,
            pids=(load.pid,),
            names=(load.device, str(load.network_namespace)),
        )


@contextlib.contextmanager
def _zombie_namespace() -> Iterator[PlantedTruth]:
    with qdisc_backlog() as load:
        yield PlantedTruth(
            Answer.LEAK,
            ("ZombieNamespace", *_OUTSIDE),
            ("AllocPage",),
            load.packet_bytes,
            names=(load.device, str(load.network_namespace)),
        )


@contextlib.contextmanager
def _reassembly() -> Iterator[PlantedTruth]:
    with first_fragments() as load:
        names = (str(load.network_namespace), "reassembly", "fragment")
        # The process in whose network namespace they wait.
        yield PlantedTruth(Answer.LEAK, _OUTSIDE, ("AllocPage",), load.packet_bytes, pids=(load.pid,), names=names)


@contextlib.contextmanager
def _neighbour_queue() -> Iterator[PlantedTruth]:
    with neighbour_queue() as load:
        names = (load.device, str(load.network_namespace))
        yield PlantedTruth(
            Answer.LEAK, (*_OUTSIDE, "UnsentData"), ("AllocPage",), load.packet_bytes, pids=(load.pid,), names=names
        )


CASES = (
    Case("tun_queue", "packets in the ring of a tun device that its process does not read", _tun_queue),
    Case("nfqueue", "packets that wait for a verdict of a process that gives none", _nfqueue),
    Case("qdisc_backlog", "packets behind a rate limit of 1 byte per second", _qdisc_backlog),
    Case("zombie_namespace", "the same, and nobody is in their network namespace any more", _zombie_namespace),
    Case("reassembly", "first fragments of datagrams whose rest does not arrive", _reassembly),
    Case("neighbour_queue", "packets for a neighbour that does not answer", _neighbour_queue),
)
