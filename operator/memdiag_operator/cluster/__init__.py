"""The cluster: reads snapshots from the API server and carries out plans. The only importer of `kubernetes`."""
