"""Directory entries in memory: names of files, and names that do not exist."""

from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import ShortText
from memdiag_api.record import ByteCount, Count, Record, Share


class DentryShare(Record):
    """DentryShare counts the entries of one file system or directory."""

    file_system: ShortText = Field(default="", description="Type of the file system, such as ext4.")
    device: ShortText = Field(default="", description="Name of its device.")
    path: ShortText = Field(
        default="",
        description="Path of the directory, or mount point of the file system; cut to what shows whose it is. Empty if "
        "not known, or if the operator is configured not to report paths.",
    )
    entries: Count = Field(description="Entries there.")
    negative: Count = Field(description="Entries that say that a name does not exist.")


class DentryCensus(Record):
    """DentryCensus counts the entries of the kernel's directory cache."""

    entries: Count = Field(description="Entries in memory.")
    size_bytes: ByteCount = Field(description="Bytes of their slabs.")
    negative: Count = Field(description="Entries that say that a name does not exist.")
    negative_bytes: ByteCount = Field(description="Bytes of these entries, without long names.")
    unused: Count = Field(description="Entries that nothing uses: the kernel can free them.")
    long_names_bytes: ByteCount = Field(description="Bytes of names that do not fit into their entry (kmalloc-rcl).")
    file_systems: Annotated[list[DentryShare], Field(max_length=limits.MAX_DENTRY_SHARES)] = Field(
        default_factory=list, description="File systems, most entries first."
    )
    directories: Annotated[list[DentryShare], Field(max_length=limits.MAX_DENTRY_SHARES)] = Field(
        default_factory=list, description="Directories with the most entries directly in them."
    )
    sampled_share: Share = Field(
        default=1,
        description="Share of the entries whose fields were read. Below 1, all counts but the sum are scaled.",
    )
