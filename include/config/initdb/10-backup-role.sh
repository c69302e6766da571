#!/bin/bash
# Makes the roles that backups log in with, drills read with, and the canary is written with. The postgres image runs this once, when it creates the database cluster.
set -e

# psql reads the password from the environment itself: as an argument it would show in the process list, and a statement
# that fails must not bring it to the server's log.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password APP038_BACKUP_PASSWORD
SET log_min_error_statement = panic;
CREATE ROLE backup LOGIN REPLICATION PASSWORD :'password';
GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO backup;
\getenv password APP038_DRILL_PASSWORD
CREATE ROLE drill LOGIN PASSWORD :'password' CONNECTION LIMIT 4;
GRANT pg_read_all_data TO drill;
-- Large objects have owners, and no predefined role reads them all (PostgreSQL, lo_compat_privileges).
ALTER ROLE backup SET lo_compat_privileges = on;
ALTER ROLE drill SET lo_compat_privileges = on;
ALTER ROLE drill SET default_transaction_read_only = on;
\getenv password APP038_CANARY_PASSWORD
CREATE ROLE canary LOGIN PASSWORD :'password' CONNECTION LIMIT 4;
CREATE SCHEMA recovery AUTHORIZATION canary;
SQL

# The image's own line for `all` databases does not match replication connections (PostgreSQL, The pg_hba.conf File).
echo 'host replication backup samenet scram-sha-256' >>"$PGDATA/pg_hba.conf"
