"""Who has the memory of each class, and the accounts of containers, for the report."""

from collections.abc import Sequence

from memdiag_api.containers import ContainerAccount
from memdiag_api.owners import ClassOwners, MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.render.text import percent, table, wrapped

_CLASS_SHARE = 0.005
"""Of the node's memory: smaller classes are in the document only."""
_OWNERS_SHOWN = 3
_CONTAINERS_SHOWN = 8
_ID_SHOWN = 12
_SMALL_BYTES = 1 << 20


def owners_lines(owners: Sequence[ClassOwners], mem_total_bytes: int) -> list[str]:
    """Return the largest owners of each class that is not small; nothing if there is none."""
    rows: list[tuple[str, ...]] = [("CLASS", "SIZE", "EXPLAINED", "LARGEST OWNERS")]
    for one in owners:
        if one.size_bytes >= _CLASS_SHARE * mem_total_bytes:
            named = ", ".join(
                f"{_name(share.owner)} {format_bytes(share.size_bytes)}" for share in one.owners[:_OWNERS_SHOWN]
            )
            explained = percent(one.explained_bytes, one.size_bytes)
            rows.append((one.memory_class, format_bytes(one.size_bytes), explained, named))
    return ["WHO HAS EACH CLASS", *table(rows, right=(1, 2))] if len(rows) > 1 else []


def containers_lines(accounts: Sequence[ContainerAccount]) -> list[str]:
    """Return the accounts of the containers that use the most; nothing if there is none."""
    if not accounts:
        return []
    rows: list[tuple[str, ...]] = [
        ("CONTAINER OR POD", "USED", "LIMIT", "WORKING SET", "ANON", "FILE", "KERNEL", "SOCKETS", "KILLED")
    ]
    for one in accounts[:_CONTAINERS_SHOWN]:
        sizes = (one.limit_bytes, one.working_set_bytes, one.anon_bytes, one.file_bytes, one.kernel_bytes)
        rows.append(
            (
                _account_name(one),
                format_bytes(one.usage_bytes),
                *map(_size, sizes),
                _size(one.socket_bytes),
                str(one.oom_kills),
            )
        )
    shown = table(rows, right=range(1, 9))
    lines = ["CONTAINERS   what their memory cgroups are charged for", shown[0]]
    for row, one in zip(shown[1:], accounts, strict=False):
        lines += [row, *wrapped(_account_details(one), " " * 12)]
    more = len(accounts) - _CONTAINERS_SHOWN
    return [*lines, f"  {more} more"] if more > 0 else lines


def _account_details(account: ContainerAccount) -> str:
    """Return what is not in the table, if it is worth a line."""
    change = account.usage_change_bytes or 0
    sizes = {"shared memory": account.shmem_bytes, "in swap": account.swap_bytes}
    parts = [f"{name} {format_bytes(size)}" for name, size in sizes.items() if size and size >= _SMALL_BYTES]
    if abs(change) >= _SMALL_BYTES:
        parts.append(f"{'+' if change > 0 else ''}{format_bytes(change)} in the window")
    if account.limit_hits:
        parts.append(f"limit reached {account.limit_hits:,} times{_in_window(account.window_limit_hits)}")
    if account.window_oom_kills:
        parts.append(f"{account.window_oom_kills:,} killed in the window")
    parts += [
        f"{one.path} {format_bytes(one.cached_bytes)}" for one in account.files if one.cached_bytes >= _SMALL_BYTES
    ]
    return ", ".join(parts)


def _in_window(count: int | None) -> str:
    return f", {count:,} of them in the window" if count else ""


def _name(owner: MemoryOwner) -> str:
    if owner.kind is OwnerKind.CONTAINER and owner.container_id:
        return f"container {owner.container_id[:_ID_SHOWN]}"
    if owner.kind is OwnerKind.POD and owner.pod_uid:
        return f"pod {owner.pod_uid}"
    return owner.name or owner.kind.value


def _account_name(account: ContainerAccount) -> str:
    """Return a short name: a longer one would push the last columns over the edge."""
    return account.container_id[:_ID_SHOWN] if account.container_id else f"pod {account.pod_uid[:_ID_SHOWN]}"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)
