"""What the objects of slab caches are, by name."""

import pytest

from memdiag_node.census.slab_caches.purposes import has_purpose, is_untyped, purpose


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("task_struct", "3,120 threads"),
        ("filp", "3,120 open files"),
        ("ext4_inode_cache", "3,120 inodes: cached files of the file system ext4"),
        ("xfs_inode", "3,120 inodes: cached files of the file system xfs"),
        ("fuse_inode", "3,120 inodes: cached files of the file system fuse"),
        ("shmem_inode_cache", "3,120 files in memory"),
        ("sock_inode_cache", "3,120 sockets"),
        ("lsm_inode_cache", "3,120 security labels"),
        ("debugfs_inode_cache", "3,120 files of tracing"),
        ("TCPv6", "3,120 sockets: of this protocol"),
        ("UNIX-STREAM", "3,120 sockets"),
        ("skbuff_fclone_cache", "3,120 packets"),
        ("nf_conntrack", "3,120 connections: tracked"),
        ("kernfs_node_cache", "3,120 files of sysfs and cgroup"),
        ("msg_msg-4k", "3,120 messages"),
        ("bio-120", "3,120 requests of block devices"),
        ("radix_tree_node", "3,120 nodes of page cache indexes"),
    ],
)
def test_a_typed_cache_says_how_many_of_what_it_has(name: str, start: str) -> None:
    assert purpose(name, 3120).startswith(start)
    assert has_purpose(name)


@pytest.mark.parametrize(
    "name", ["kmalloc-64", "kmalloc-rnd-07-8k", "kmalloc-cg-1k", "dma-kmalloc-96", "memdup_user-8"]
)
def test_any_type_of_object_is_in_a_kmalloc_cache(name: str) -> None:
    assert is_untyped(name)
    assert not has_purpose(name)
    assert not purpose(name, 1)


def test_a_cache_of_a_module_that_is_not_known_has_neither() -> None:
    assert not is_untyped("leaky_cache")
    assert not has_purpose("leaky_cache")
    assert not purpose("leaky_cache", 1)
