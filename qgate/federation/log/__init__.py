"""The signed log of each pool and its replicas at the others. Specified in docs/replication.md."""
