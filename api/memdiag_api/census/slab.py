"""Slab memory by cache and by container."""

from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import Sentence, ShortText
from memdiag_api.record import ByteCount, Count, Name, Record, Share, SignedByteCount


class SlabCache(Record):
    """SlabCache is one cache of kernel objects. The kernel may have merged caches of similar objects under one name."""

    name: Name = Field(description="Name of the cache, as in /proc/slabinfo.")
    size_bytes: ByteCount = Field(description="Bytes of all its slabs, with their unused places and remainders.")
    slabs: Count = Field(description="Number of slabs.")
    objects: Count = Field(description="Number of allocated objects.")
    places: Count = Field(description="Number of objects for which the slabs have room.")
    object_bytes: ByteCount = Field(description="Bytes from one object to the next.")
    reclaimable: bool = Field(description="True if it counts as SReclaimable, false if it counts as SUnreclaim.")
    merged: bool = Field(default=False, description="True if other caches share it, under names that are not known.")
    change_bytes: SignedByteCount | None = Field(
        default=None, description="Change over the window. Null if the start of the window was not read."
    )
    error_bytes: ByteCount = Field(default=0, description="Standard error of sizeBytes if memory was sampled.")
    purpose: Sentence = Field(default="", description="What its objects are. Empty if that is not known.")


class ChargedCache(Record):
    """ChargedCache is the part of a container's charge that is in one cache."""

    name: Name = Field(description="Name of the cache.")
    size_bytes: ByteCount


class SlabCharge(Record):
    """SlabCharge is the slab memory that is charged to one container."""

    container_id: ShortText = Field(
        description="ID of the container, from the path of its memory cgroup. Empty for cgroups of no known container."
    )
    pod_uid: ShortText = Field(default="", description="UID of the pod, from the path of its memory cgroup.")
    size_bytes: ByteCount = Field(description="Bytes of the objects that are charged to it.")
    objects: Count = Field(description="Number of these objects.")
    caches: Annotated[list[ChargedCache], Field(max_length=limits.MAX_CHARGED_CACHES)] = Field(
        default_factory=list, description="The caches with most of these bytes, largest first."
    )


class SlabCaches(Record):
    """SlabCaches is all slab memory of the node.

    reclaimableBytes, unreclaimableBytes and largeKmallocBytes add up to the kernel's own counters except for
    differenceBytes.
    """

    caches: Annotated[list[SlabCache], Field(max_length=limits.MAX_SLAB_CACHES)] = Field(
        description="The largest caches, largest first."
    )
    other_caches: Count = Field(default=0, description="Number of caches that are not listed.")
    other_bytes: ByteCount = Field(default=0, description="Bytes of the caches that are not listed.")
    reclaimable_bytes: ByteCount = Field(description="Bytes of all slabs that count as SReclaimable.")
    unreclaimable_bytes: ByteCount = Field(description="Bytes of all slabs that count as SUnreclaim.")
    large_kmalloc_bytes: ByteCount | None = Field(
        default=None,
        description="Bytes of blocks that kmalloc took from the buddy allocator, which count as SUnreclaim and are in "
        "no slab. Null if this kernel does not mark them: then they are in differenceBytes.",
    )
    difference_bytes: SignedByteCount = Field(
        description="SReclaimable + SUnreclaim of /proc/meminfo, without what was counted here."
    )
    charged: Annotated[list[SlabCharge], Field(max_length=limits.MAX_SLAB_CHARGES)] | None = Field(
        default=None, description="Charged objects by container, largest first. Null if charges cannot be read."
    )
    removed_cgroups: Count = Field(
        default=0, description="Number of removed memory cgroups that still have charged objects."
    )
    removed_cgroup_bytes: ByteCount = Field(
        default=0,
        description="Bytes of the objects of removed memory cgroups. They are part of the charges of the nearest "
        "remaining ancestors.",
    )
    charges_sampled_share: Share = Field(
        default=1, description="Share of the places for objects whose charges were read. The charges are scaled."
    )
    sampled_share: Share = Field(
        default=1, description="Share of memory that was read. Below 1, the figures are scaled from a random sample."
    )
    error_bytes: ByteCount = Field(default=0, description="Standard error of all slab bytes if memory was sampled.")
