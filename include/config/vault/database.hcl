# What the backup identity needs on top of its own policy where a PostgreSQL system takes its login from Vault:
# `credentials: {vault: app038, path: database/creds/backup}` in recovery.yaml. Keep the paths that yours uses.

# A role that is made for each backup and dropped after it. For a backup of PostgreSQL 16 or later its role needs:
#
#   -- In PostgreSQL, as superuser. The group `backup` holds the rights (and CONNECT, where PUBLIC has none); `vault`
#   -- may give them on, and does not have them itself.
#   CREATE ROLE backup NOLOGIN;
#   GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO backup;
#   CREATE ROLE vault LOGIN CREATEROLE REPLICATION PASSWORD '...';
#   GRANT backup TO vault WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
#   GRANT SET ON PARAMETER lo_compat_privileges TO vault;
#
#   -- In Vault, creation_statements of database/roles/backup. Large objects have owners, and no predefined role reads
#   -- them all: without the second statement dumps fail where there are any.
#   CREATE ROLE "{{name}}" LOGIN REPLICATION PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE backup;
#   ALTER ROLE "{{name}}" SET lo_compat_privileges = on;
#
#   -- And its revocation_statements. What Vault does without them fails where others own the tables, and the role stays.
#   DROP ROLE IF EXISTS "{{name}}";
#
# The lease is renewed at half of its time (default_ttl, an hour for instance). max_ttl, also the mount's, bounds the
# longest backup: one that takes longer is ended before the role is dropped. A WAL stream goes on with a new role.
# When the token ends, its leases end with it: token_max_ttl of the identity bounds a backup just as well.
path "database/creds/backup" {
  capabilities = ["read"]
}

path "sys/leases/renew" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id"  = ["database/creds/backup/*"]
    "increment" = []
  }
}

# Without this the role stays until its lease ends by itself, and each backup says so.
path "sys/leases/revoke" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/backup/*"]
    "sync"     = []
  }
}

# A role that is always the same, whose password Vault changes. It has no lease: let it change when no backup runs.
# path "database/static-creds/backup" {
#   capabilities = ["read"]
# }

# A secret with the keys `username` and `password`. KV version 2 reads below data/: secret/data/app038/postgres.
# path "secret/data/app038/postgres" {
#   capabilities = ["read"]
# }
