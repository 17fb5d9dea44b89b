"""What every request to the cluster needs: the API server, the cache of its objects, and the configuration."""

from dataclasses import dataclass, field
from datetime import datetime

from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.cluster.store import Cache
from memdiag_operator.config import OperatorConfig
from memdiag_operator.kube import naming


@dataclass(frozen=True)
class Cluster:
    """The cluster as the operator sees it. Thread-safe."""

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
        """Fill the cache by whole lists. Pods come last: no pod that a diagnosis refers to may be missing."""
        self.cache.diagnoses.replace(self.kubernetes.list_diagnoses())
        self.refill_pods()

    def refill_pods(self) -> None:
        """Fill the runner pods of the cache by a whole list."""
        self.cache.pods.replace(self.kubernetes.list_pods(self.runner_namespace, naming.RUNNER_SELECTOR))

    def refill_reports(self) -> None:
        """Fill the cache's list of reports, without their content."""
        self.cache.reports.replace(self.kubernetes.list_reports())
