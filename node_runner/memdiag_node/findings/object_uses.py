"""What the objects of a growing slab cache are for, as far as it decides whether they may be a leak (pure).

Both the name of the cache and the functions of the stack say it: the kernel merges caches of objects of one size, and
kmalloc has objects of any type.
"""

import re
from enum import Enum

from memdiag_api.evidence import Stack
from memdiag_node.kernel.symbols import function_name


class ObjectUse(Enum):
    """A use of slab objects with an end of its own, and how a reason says it."""

    GIVEN_BACK = "the kernel gives them back when memory is needed"
    EXPIRES = "they expire by timers, or their number is limited by configuration"
    OF_PROCESSES = "these objects belong to the process: they are freed when it exits or closes them"
    BY_SETUP = "such memory is taken once, by new pods, programs, devices, rules and files, for as long as they exist"
    PACKETS = "they are packets"
    OTHER = ""


_CACHES = (
    (ObjectUse.PACKETS, re.compile(r"skbuff_\w+")),
    (
        ObjectUse.GIVEN_BACK,
        re.compile(r"lsm_inode_cache|selinux_inode_security|smack_inode\w*|(ima_)?iint_cache"),
    ),
    (
        ObjectUse.OF_PROCESSES,
        re.compile(
            r"filp|vm_area_struct|vma_lock|task_struct|sighand_cache|signal_cache|files_cache|fs_cache|mm_struct"
            r"|pid(_\d+)?|cred(_jar)?|sock_inode_cache|eventpoll_\w+|ep_\w+|anon_vma(_chain)?|maple_node|lsm_file_cache"
            r"|task_delay_info|io_?context|sigqueue|posix_timers_cache|file_lock\w*|fasync_cache|nsproxy"
            r"|(inotify|fanotify|fsnotify)_\w+|io_kiocb|kioctx|kiocb|aio_kiocb"
            r"|(UNIX|TCP|UDP|RAW|PING|PACKET|NETLINK|MPTCP|SCTP|DCCP|SMC)\S*"
        ),
    ),
    (
        ObjectUse.EXPIRES,
        re.compile(
            r"(d?tw_sock|request_sock)_\S+|tcp_bind\S*|nf_conn(track|count)\S*|nf_ct_\S+|nf-frags|ip[46]-frags"
            r"|inet_peer\S*|(ip|ip6|xfrm)\w*_dst_cache|rt_cache|rtable|neighbour|arp_cache|ndisc_cache"
            r"|bridge_fdb_cache|flow_cache|zspage\S*|zs_handle\S*|zswap_entry"
        ),
    ),
    (ObjectUse.BY_SETUP, re.compile(r"(shmem|hugetlbfs|mqueue)_inode_cache")),
)
_FUNCTIONS = (
    (
        ObjectUse.PACKETS,
        re.compile(
            r"_*(alloc_skb\w*|build_skb\w*|napi_alloc_skb|netdev_alloc_skb|slab_build_skb|kmalloc_reserve)"
            r"|sock_alloc_send_p?skb|sock_wmalloc|skb_(clone|copy\w*|segment\w*|ext_\w+)|_*pskb_(copy\w*|expand_head)"
            r"|(tcp|sk)_stream_alloc_skb"
        ),
    ),
    (
        ObjectUse.GIVEN_BACK,
        re.compile(
            r"_*d_alloc\w*|alloc_inode|inode_init_always\w*|(security|lsm)_inode_alloc|xfs_inode_alloc|xfs_iext_\w+"
            r"|xfs_iformat\w*|xfs_init_local_fork|ext4_es_\w+"
        ),
    ),
    (
        ObjectUse.OF_PROCESSES,
        re.compile(
            r"copy_process|begin_new_exec|alloc_bprm|_*mmap_region|_*anon_vma_\w+|expand_files|alloc_fdtable|dup_fd"
            r"|alloc_(empty_)?file\w*|do_eventfd|alloc_pipe_info|create_pipe_files|sock_alloc\w*|sk_alloc|sk_prot_alloc"
            r"|sk_clone\w*|ep_insert|ep_alloc|do_epoll_\w+|inotify_\w+|do_inotify_\w+|fanotify_\w+|do_signalfd4"
            r"|_*do_sys_timerfd_create|(single|seq)_open\w*|do_timer_create|alloc_posix_timer|perf_event_alloc"
            r"|io_uring_\w+|io_sqe_\w+"
        ),
    ),
    (
        ObjectUse.EXPIRES,
        re.compile(
            r"_*neigh_(create|alloc)|_*nf_conntrack_alloc|nf_ct_\w+|inet_getpeer\w*|rt6?_insert_exception"
            r"|update_or_create_fnhe|inet_reqsk_alloc|inet_twsk_alloc|inet_frag_\w+|(rt|ip6)_dst_alloc|dst_alloc"
        ),
    ),
    (
        ObjectUse.BY_SETUP,
        re.compile(
            r"cgroup_mkdir|mem_cgroup_css_alloc|css_create|copy_net_ns|setup_net|alloc_netdev_mqs|register_netdevice"
            r"|_*sys_bpf|bpf_(map|mem)_\w+|alloc_bulk|htab_map_\w+|trie_update_elem|nf_tables_\w+|nfnetlink_rcv\w*|rtnetlink_rcv_msg|kernfs_\w+|device_add"
            r"|path_mount|copy_mnt_ns|copy_tree"
        ),
    ),
)


_ROUTES = re.compile(r"(ip|ip6|xfrm)\w*_dst_cache|rt_cache|rtable")
"""Routes that something refers to do not expire. A single stack shows only that they are in use."""


def objects_expire(cache: str) -> bool:
    """Return whether a cache of this name may grow fast by itself, and shrinks again by timers or up to a limit."""
    patterns = dict(_CACHES)
    return patterns[ObjectUse.EXPIRES].fullmatch(cache) is not None and _ROUTES.fullmatch(cache) is None


def object_use(stack: Stack) -> ObjectUse:
    """Return what the slab objects of a stack are for: by their cache, otherwise by the functions that it passes."""
    for use, caches in _CACHES:
        if caches.fullmatch(stack.slab_cache):
            return use
    names = [function_name(frame) for frame in stack.frames]
    for use, functions in _FUNCTIONS:
        if any(functions.fullmatch(name) for name in names):
            return use
    return ObjectUse.OTHER
