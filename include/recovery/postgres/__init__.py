"""PostgreSQL: the replication protocol, base backups, dumps, restores, and the sandbox server."""
