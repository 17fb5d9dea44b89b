"""The cluster: reads snapshots from the API server and carries out plans. Alone in importing `kubernetes`."""
