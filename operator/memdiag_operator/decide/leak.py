"""What a verdict says about LeakDetected."""

from memdiag_api.conditions import ConditionStatus
from memdiag_api.evidence import VerdictKind

LEAK_STATUS = {
    VerdictKind.PINNED_BY_UNREAD_SOCKET: ConditionStatus.TRUE,
    VerdictKind.GROWING_KERNEL_ALLOCATION: ConditionStatus.TRUE,
    VerdictKind.LARGE_BUT_UNEXPLAINED: ConditionStatus.UNKNOWN,
    VerdictKind.INCONCLUSIVE: ConditionStatus.UNKNOWN,
    VerdictKind.NO_LEAK: ConditionStatus.FALSE,
}
# Of several nodes' answers the most telling one stands for all.
WEIGHT = {ConditionStatus.TRUE: 2, ConditionStatus.UNKNOWN: 1, ConditionStatus.FALSE: 0}
