#!/bin/bash
# Makes the role that backups log in with. The postgres image runs this once, when it creates the database cluster.
set -e

# psql reads the password from the environment itself: as an argument it would show in the process list, and a statement
# that fails must not bring it to the server's log.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password APP038_BACKUP_PASSWORD
SET log_min_error_statement = panic;
CREATE ROLE backup LOGIN REPLICATION PASSWORD :'password';
GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO backup;
SQL

# The image's own line for `all` databases does not match replication connections (PostgreSQL, The pg_hba.conf File).
echo 'host replication backup samenet scram-sha-256' >>"$PGDATA/pg_hba.conf"
