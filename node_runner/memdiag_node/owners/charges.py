"""User memory by container, from the frames that memory cgroups are charged for (pure)."""

from collections.abc import Mapping

from memdiag_node.census.frames.frames import FrameCensus, UserFrames
from memdiag_node.procfs.cgroup import ContainerIdentity


def by_container(
    census: FrameCensus | None, containers: Mapping[int, ContainerIdentity]
) -> dict[ContainerIdentity, UserFrames]:
    """Return the frames of each container with all its cgroups. `containers`: those of cgroups, by their inodes.

    A removed container counts for the nearest remaining cgroup above it, which mostly is its pod: then the ID of the
    container is empty. Empty if charges are not known, or not all frames were scanned.
    """
    if census is None or not census.knows_charges or census.scanned_share < 1:
        return {}
    found: dict[ContainerIdentity, UserFrames] = {identity: UserFrames() for identity in containers.values()}
    for inode, frames in census.user.items():
        if inode in containers:
            found[containers[inode]].add(frames)
    return found
