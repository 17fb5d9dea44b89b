"""What the objects of well-known slab caches are (pure)."""

import re

# Caches of kmalloc: any type of object. Also those of copies from user space, apart since Linux 6.11.
_UNTYPED = re.compile(r"(dma-)?kmalloc-.*|memdup_user-.*|size-\d+.*")

_SOCKETS = (
    r"(TCP|TCPv6|UDP|UDPv6|UDP-Lite|UDPLITEv6|RAW|RAWv6|PING|PINGv6|UNIX(-STREAM)?|PACKET|NETLINK|MPTCP(v6)?|SCTP(v6)?"
    r"|XDP|VSOCK|AF_VSOCK|DCCP(v6)?|TIPC|KEY|ALG|SMC6?|CAN\w*|L2TP\S*|PPPOE|BRIDGE)"
)

# A pattern of the whole name, what one object is, and what it belongs to.
_PURPOSES: tuple[tuple[str, str, str], ...] = (
    (r"task_struct", "threads", "one for each thread of every process, also of those that were not waited for"),
    (r"thread_stack|thread_info", "stacks of threads", "one for each thread"),
    (r"signal_cache|sighand_cache", "processes", "one for each process, with the handlers of its signals"),
    (r"mm_struct", "address spaces", "one for each process; threads share it"),
    (r"pid(_\d+)?", "process IDs", "one for each thread, process group and session, and for each open pidfd"),
    (r"files_cache", "tables of open files", "one for each process"),
    (r"fs_cache", "working directories", "one for each process"),
    (r"cred(_jar)?", "credentials", "of processes and of the files that they opened"),
    (r"task_group", "groups of the scheduler", "one for each cgroup of the CPU controller"),
    (r"task_delay_info|taskstats|iocontext|io_context", "accounts of threads", "one for each thread that is accounted"),
    (r"sigqueue", "pending signals", "signals that processes have not handled, and POSIX timers"),
    (r"posix_timers_cache", "POSIX timers", "created by processes with timer_create"),
    (r"(vm_area_struct|vma_lock)", "mappings", "mapped ranges of the address spaces of processes"),
    (r"maple_node", "nodes of trees of mappings", "the index of the mappings of processes"),
    (r"anon_vma(_chain)?", "owners of anonymous memory", "they connect anonymous pages to mappings, more after fork"),
    (r"(mm_slot|ksm_\w+|rmap_item)", "address spaces under scan", "of huge pages (khugepaged) or same pages (KSM)"),
    (r"vmap_area", "ranges of vmalloc", "also of modules, stacks of threads and BPF programs"),
    (r"filp", "open files", "every open file, pipe, socket and memory file, of fds and in flight"),
    (r"file_lock(_cache|_ctx)?|file_lease_cache|flctx", "file locks", "of files that processes locked"),
    (r"dentry", "directory entries", "cached names of files, also of files that do not exist (negative)"),
    (r"names_cache", "paths", "of system calls that are in progress"),
    (r"inode_cache", "inodes", "of pseudo file systems such as pipes, anonymous files and proc"),
    (r"sock_inode_cache", "sockets", "the file part of sockets that processes opened"),
    (r"shmem_inode_cache", "files in memory", "of tmpfs, memfd and System V shared memory"),
    (r"proc_inode_cache", "files of /proc", "cached because they were opened or listed"),
    (r"(lsm_inode_cache|lsm_file_cache|selinux_\w+|avc_\w+|apparmor_\w+|aa_\w+)", "security labels", "of files"),
    (r"(debugfs|tracefs)_inode_cache|ftrace_event_field|trace_event_file|eventfs_\w+", "files of tracing", ""),
    (r"(mqueue_inode_cache)", "message queues", "of POSIX"),
    (r"\w+_(inode|inode_cache|icache)", "inodes", ""),
    (r"(xfs_\w+|xfs-\w+)", "objects of XFS", "log items and buffers of the file system xfs"),
    (r"btrfs_\w+", "objects of Btrfs", "extents, references and transactions of the file system btrfs"),
    (r"(ext4_\w+|extent_status|mbcache|ext4)", "objects of ext4", "extents and journals of the file system ext4"),
    (r"jbd2_\w+", "objects of a journal", "of the file system ext4"),
    (r"nfs\w*|rpc_\w+", "objects of NFS", "requests and states of network file systems"),
    (r"fuse_\w+", "requests of FUSE", "of file systems in user space"),
    (r"buffer_head", "buffers of blocks", "metadata of file systems and pages of files with blocks"),
    (r"radix_tree_node|xa_node", "nodes of page cache indexes", "the index of cached files and of IDs"),
    (r"(bio(-\d+|set)?|biovec-\S+|blkdev_\w+|request_queue|dm_\w+|kcopyd_job)", "requests of block devices", ""),
    (r"kernfs_node_cache|kernfs_iattrs_cache", "files of sysfs and cgroup", "one for each, more with many cgroups"),
    (r"proc_dir_entry|pde_opener", "entries of /proc", "registered by drivers and network namespaces"),
    (r"skbuff_(head|fclone)_cache", "packets", "heads of packets, wherever they wait"),
    (r"skbuff_small_head|skbuff_ext_cache", "packets", "linear parts and extensions of packets"),
    (r"(request_sock_\S+|tw_sock_\S+|tcp_bind\S*)", "connections", "opening, closing and bound connections of TCP"),
    (r"nf_conntrack\S*|nf_conncount\S*", "connections", "tracked by the packet filter (conntrack)"),
    (r"(ip_dst_cache|ip6_dst_cache|xfrm_dst_cache|rt_cache|fib6_node|ip_fib_\w+|fib6_nodes)", "routes", ""),
    (r"(neighbour|arp_cache|ndisc_cache)", "neighbours", "link layer addresses (ARP, NDP)"),
    (r"inet_peer_cache", "remote hosts", "addresses that sent packets"),
    (r"net_namespace", "network namespaces", "with or without processes"),
    (r"(mnt_cache|mount)", "mounts", "of all mount namespaces"),
    (r"(nsproxy|uts_namespace|pid_namespace|user_namespace|ipc_namespace|time_namespace)", "namespaces", ""),
    (r"(eventpoll_epi|ep_epi)", "watched files", "items of epoll, one for each watched fd"),
    (r"(eventpoll_pwq|ep_pwq|ep_head)", "wait entries", "of files that epoll watches"),
    (r"(inotify_inode_mark|fanotify_\w+|fsnotify_\w+|dnotify_\w+)", "marks", "of watched files (inotify, fanotify)"),
    (r"(io_kiocb|io_buffer|kioctx|kiocb|aio_kiocb)", "requests of io_uring or aio", ""),
    (r"msg_msg(-\S+)?", "messages", "of System V and POSIX queues, not received"),
    (r"(shared_policy_node|numa_policy)", "memory policies", "of mappings (NUMA)"),
    (r"(kmem_cache|kmem_cache_node)", "caches", "the caches of slab objects themselves"),
    (r"(mem_cgroup|mem_cgroup_per_node|percpu_ref_data|cgroup_rstat\w*)", "memory cgroups", "also removed ones"),
    (r"(zspage\S*|zs_handle\S*|zswap_entry|zbud\S*|z3fold\S*)", "compressed pages", "of zram or zswap"),
    (r"(pool_workqueue|workqueue_\w+)", "work queues", "of drivers and the kernel"),
    (r"(Acpi-\w+)", "objects of ACPI", ""),
    (r"(kvm_\w+|mmu_page_header|pte_list_desc)", "objects of virtual machines", "of KVM"),
    (r"(hugetlbfs_\w+|hugetlb\w*)", "objects of huge pages", ""),
    (r"(uid_cache|key_jar|user_\w+)", "users and keys", ""),
    (_SOCKETS, "sockets", "of this protocol, in all network namespaces"),
)
_COMPILED = tuple((re.compile(pattern), objects, meaning) for pattern, objects, meaning in _PURPOSES)
_INODES = re.compile(r"(?P<system>[a-z0-9]+?)_(inode|icache)\w*")


def is_untyped(name: str) -> bool:
    """Whether objects of any type are in the cache with this name."""
    return _UNTYPED.fullmatch(name) is not None


def has_purpose(name: str) -> bool:
    """Whether the objects of the cache are of a known type."""
    return not is_untyped(name) and any(pattern.fullmatch(name) for pattern, _, _ in _COMPILED)


def purpose(name: str, objects: int) -> str:
    """One line on the objects of a cache: `3,120 threads: one for each thread`. Empty if they are not known."""
    if is_untyped(name):
        return ""
    for pattern, what, meaning in _COMPILED:
        if pattern.fullmatch(name):
            system = _INODES.fullmatch(name) if what == "inodes" else None
            detail = meaning or (f"cached files of the file system {system['system']}" if system else "")
            return f"{objects:,} {what}" + (f": {detail}" if detail else "")
    return ""
