"""The command `memdiag-operator`."""

import argparse
import logging
import os
import sys
from pathlib import Path

import kopf

from memdiag_operator.cluster.client import KubernetesClient
from memdiag_operator.config import ConfigError, load_config
from memdiag_operator.handlers import diagnosis, pods, runtime
from memdiag_operator.metrics import OperatorMetrics
from memdiag_operator.run_log import SubjectFilter

DEFAULT_CONFIG = "/etc/memdiag/operator.yaml"
HANDLERS = (diagnosis, pods, runtime)
"""Imported to register themselves with kopf."""

CHATTY_LOGGERS = ("kopf.objects", "kopf.activities.probe", "aiohttp.access")
"""They log every event and every successful probe."""


def main() -> int:
    """Run the operator. Returns 2 if its configuration is invalid, 1 if there is no cluster or a port is in use."""
    parser = argparse.ArgumentParser(prog="memdiag-operator", description="The operator of MemoryDiagnoses.")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("MEMDIAG_CONFIG", DEFAULT_CONFIG)),
        help=f"YAML configuration file (default: $MEMDIAG_CONFIG or {DEFAULT_CONFIG})",
    )
    parser.add_argument(
        "--liveness", default="http://0.0.0.0:8080/healthz", metavar="URL", help="where to serve its health"
    )
    parser.add_argument(
        "--metrics", default="0.0.0.0:8081", metavar="ADDRESS:PORT", help="where to serve Prometheus metrics"
    )
    parser.add_argument("--log-format", choices=("json", "plain"), default="json")
    parser.add_argument("--verbose", action="store_true", help="also log what kopf does")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    log_format = kopf.LogFormat.JSON if arguments.log_format == "json" else kopf.LogFormat.FULL
    kopf.configure(verbose=arguments.verbose, log_format=log_format)
    for handler in logging.getLogger().handlers:
        handler.addFilter(SubjectFilter())
    if not arguments.verbose:
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
    metrics = OperatorMetrics()
    metrics.limit(config.max_concurrent_runners)
    address, _, port = arguments.metrics.rpartition(":")
    try:
        metrics.serve(address.strip("[]"), int(port))
    except (OSError, ValueError) as error:
        print(f"cannot serve metrics at {arguments.metrics}: {error}", file=sys.stderr)
        return 1
    kubernetes = KubernetesClient.connect(metrics.requested)
    runtime.operate(config, kubernetes, metrics, liveness_endpoint=arguments.liveness)
    return 0


if __name__ == "__main__":
    sys.exit(main())
