"""Rule: transparent huge pages of processes that are mostly zero (docs/machine.md)."""

from collections.abc import Iterator

from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.machine import HugePageSample
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import short_id
from memdiag_node.findings.situation import Situation

_OWNER_SHARE = 0.5
"""Of the zero pages, from which one container or process is named as the owner."""
_MAX_REASONS = 3
_CERTAIN_SHARE = 0.25
"""Of the estimate: with a larger standard error, the confidence is low."""


def huge_page_waste(situation: Situation) -> Iterator[Draft]:
    """Yield a finding if the estimate of zero memory in huge pages is notable.

    It claims no memory: the pages belong to the processes that have them.
    """
    machine = situation.measured.machine
    sample = machine.huge_page_sample if machine else None
    if sample is None or sample.zero_bytes < situation.notable_bytes:
        return
    zero = format_bytes(sample.zero_bytes)
    total = format_bytes(sample.huge_pages * sample.huge_page_bytes)
    is_certain = sample.error_bytes <= _CERTAIN_SHARE * sample.zero_bytes
    yield Draft(
        kind=FindingKind.HUGE_PAGE_WASTE,
        memory_class=ClassName.ANON_PAGES,
        size_bytes=sample.zero_bytes,
        claims_bytes={},
        owner=_owner(sample),
        leak=LeakAnswer.NO,
        confidence=Confidence.MEDIUM if is_certain else Confidence.LOW,
        sentence=f"About {zero} of the {total} in transparent huge pages of processes are zero: most likely, nothing "
        "was ever written there.",
        reasons=[
            f"in {sample.sampled_pages} of {sample.huge_pages} huge pages, {sample.zero_share:.0%} of the memory is "
            f"zero (standard error of the estimate: {format_bytes(sample.error_bytes)})",
            f"{sample.mostly_zero_share:.0%} of them are zero to more than half",
            f"the threshold for it is {format_bytes(situation.notable_bytes)}",
            *(
                f"about {format_bytes(one.zero_bytes)} are of container {short_id(one.container_id)}"
                for one in sample.containers[:_MAX_REASONS]
                if one.container_id and one.zero_bytes
            ),
            *(
                f"about {format_bytes(one.zero_bytes)} are of {shown_process(one.comm, one.pid)}"
                for one in sample.processes[:_MAX_REASONS]
                if one.zero_bytes
            ),
        ],
        advice="Set /sys/kernel/mm/transparent_hugepage/enabled to madvise, or lower khugepaged/max_ptes_none there. "
        "Since Linux 6.12, the kernel splits such pages when memory is short (shrink_underused).",
        sections=["machine.hugePageSample"],
        is_notable=True,
    )


def _owner(sample: HugePageSample) -> MemoryOwner:
    """Return the process with most of it, else the container, else the node."""
    least_bytes = _OWNER_SHARE * sample.zero_bytes
    process, container = next(iter(sample.processes), None), next(iter(sample.containers), None)
    if process and process.zero_bytes >= least_bytes:
        return MemoryOwner(
            kind=OwnerKind.PROCESS,
            name=shown_process(process.comm, process.pid),
            pid=process.pid,
            comm=process.comm,
            container_id=process.container_id,
            pod_uid=process.pod_uid,
            processes=1,
        )
    if container and container.container_id and container.zero_bytes >= least_bytes:
        return MemoryOwner(
            kind=OwnerKind.CONTAINER,
            name=short_id(container.container_id),
            container_id=container.container_id,
            pod_uid=container.pod_uid,
        )
    return MemoryOwner(kind=OwnerKind.NODE, name="processes with transparent huge pages")
