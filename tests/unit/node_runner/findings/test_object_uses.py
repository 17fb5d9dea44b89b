"""What slab objects are for, by cache and by function."""

import pytest

from memdiag_api.evidence import AllocationUnit, Context, Stack
from memdiag_node.findings.object_uses import ObjectUse, object_use, objects_expire


@pytest.mark.parametrize(
    ("cache", "function", "use"),
    [
        ("kmalloc-64", "leak_fn", ObjectUse.OTHER),
        ("msg_msg-4k", "load_msg", ObjectUse.OTHER),
        ("skbuff_head_cache", "__alloc_skb", ObjectUse.PACKETS),
        ("kmalloc-cg-1k", "__alloc_skb", ObjectUse.PACKETS),
        ("kmalloc-512", "sock_alloc_send_pskb", ObjectUse.PACKETS),
        ("lsm_inode_cache", "inode_init_always_gfp", ObjectUse.GIVEN_BACK),
        ("kmalloc-256", "xfs_init_local_fork", ObjectUse.GIVEN_BACK),
        ("filp", "alloc_empty_file", ObjectUse.OF_PROCESSES),
        ("vm_area_struct", "vm_area_alloc", ObjectUse.OF_PROCESSES),
        ("sock_inode_cache", "sock_alloc_inode", ObjectUse.OF_PROCESSES),
        ("TCPv6", "sk_prot_alloc", ObjectUse.OF_PROCESSES),
        ("UNIX-STREAM", "sk_prot_alloc", ObjectUse.OF_PROCESSES),
        ("kmalloc-64", "do_eventfd", ObjectUse.OF_PROCESSES),
        ("tw_sock_TCP", "inet_twsk_alloc", ObjectUse.EXPIRES),
        ("request_sock_TCPv6", "inet_reqsk_alloc", ObjectUse.EXPIRES),
        ("nf_conntrack", "__nf_conntrack_alloc", ObjectUse.EXPIRES),
        ("kmalloc-128", "nf_ct_ext_add", ObjectUse.EXPIRES),
        ("inet_peer_cache", "inet_getpeer", ObjectUse.EXPIRES),
        ("ip6_dst_cache", "ip6_dst_alloc", ObjectUse.EXPIRES),
        ("kmalloc-1k", "___neigh_create", ObjectUse.EXPIRES),
        ("kmalloc-2k", "mem_cgroup_css_alloc", ObjectUse.BY_SETUP),
        ("kmalloc-4k", "copy_net_ns", ObjectUse.BY_SETUP),
        ("shmem_inode_cache", "shmem_alloc_inode", ObjectUse.BY_SETUP),
    ],
)
def test_what_objects_are_for(cache: str, function: str, use: ObjectUse) -> None:
    stack = Stack(
        frames=[f"{function}+0x10", "do_syscall_64+0x20"],
        context=Context.PROCESS,
        memory_class="Slab",
        unit=AllocationUnit.OBJECTS,
        slab_cache=cache,
        outstanding_bytes=1,
        outstanding_blocks=1,
    )
    assert object_use(stack) is use


@pytest.mark.parametrize(
    ("cache", "expires"),
    [("nf_conntrack", True), ("tw_sock_TCP", True), ("ip_dst_cache", False), ("kmalloc-64", False), ("filp", False)],
)
def test_whole_caches_that_shrink_by_themselves(cache: str, expires: bool) -> None:
    """Not those of routes: a route that something still refers to stays."""
    assert objects_expire(cache) == expires
