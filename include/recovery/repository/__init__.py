"""Where backups live: layout, object stores, the sealing stream, catalog, lease, verification."""
