"""When things happen: every event and every sweep leads to the same reconcile. Imports neither kopf nor kubernetes."""
