"""What every request to the cluster needs: the API server, what it was last seen to hold, and the configuration."""

from dataclasses import dataclass, field
from datetime import datetime

from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.store import Cache
from memdiag_operator.config import OperatorConfig
from memdiag_operator.kube import naming


@dataclass(frozen=True)
class Cluster:
    """The cluster as the operator sees it. Threads may use it at the same time."""

    kubernetes: KubernetesClient
    config: OperatorConfig
    cache: Cache = field(default_factory=Cache)

    @property
    def runner_namespace(self) -> str:
        """The namespace of all runner pods."""
        return self.config.runner.namespace

    def now(self) -> datetime:
        """The API server's time."""
        return self.kubernetes.clock.now()

    def refill(self) -> None:
        """Fill the cache by whole lists. Pods come last: none that a diagnosis tells of may be missing."""
        self.cache.diagnoses.replace(self.kubernetes.list_diagnoses())
        self.refill_pods()

    def refill_pods(self) -> None:
        """Fill the runner pods of the cache by a whole list."""
        self.cache.pods.replace(self.kubernetes.list_pods(self.runner_namespace, naming.RUNNER_SELECTOR))

    def refill_reports(self) -> None:
        """Fill the cache's list of reports, without what they say."""
        self.cache.reports.replace(self.kubernetes.list_reports())
