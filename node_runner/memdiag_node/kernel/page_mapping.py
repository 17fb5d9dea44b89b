"""What a page of a process or a file refers to: the field `mapping` of struct page (include/linux/page-flags.h)."""

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.layout import Field

PAGE_MAPPING_FIELD: Field = ("PAGE_MAPPING", "page", "mapping")
ANONYMOUS = 1  # PAGE_MAPPING_ANON
_KIND_BITS = 3  # PAGE_MAPPING_FLAGS


def is_anonymous(mapping: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each is the address of an anon_vma plus ANONYMOUS. That of a KSM page is not."""
    return np.asarray((mapping & np.uint64(_KIND_BITS)) == ANONYMOUS, np.bool_)
