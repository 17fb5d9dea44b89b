"""The advice names what the reader can act on: pod and container where they are known."""

from memdiag_api.diagnosis import HolderSummary
from memdiag_api.evidence import HolderKind
from memdiag_operator.results.wording import advice

RUNNER_SAYS = "Find out why python3[4711] does not read fd 7."
HOLDER = HolderSummary(
    kind=HolderKind.SOCKET,
    namespace="web",
    pod="nginx-7d4",
    container="nginx",
    pid=4711,
    comm="nginx",
    fds=[11],
    unread_bytes=3 * 1024**2,
    pinned_bytes=6 * 1024**3,
    stuck_seconds=61.5,
)


def test_a_holder_in_a_pod_is_named_by_pod_and_container() -> None:
    assert advice(HOLDER, RUNNER_SAYS) == (
        "Restart or fix container nginx of pod web/nginx-7d4: nginx[4711] has 3.00 MiB unread on fd 11 for at least "
        "62 s, pinning 6.00 GiB. The memory is freed as soon as it reads or closes the socket."
    )


def test_a_holder_outside_of_pods_keeps_the_runners_words() -> None:
    said = f"The node's runner says: {RUNNER_SAYS}"
    assert advice(HOLDER.model_copy(update={"pod": ""}), RUNNER_SAYS) == said
    assert advice(None, RUNNER_SAYS) == said
    assert advice(None, "") == ""
