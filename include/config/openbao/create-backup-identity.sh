#!/bin/sh
# Gives the backup worker its AppRole, with the role id and the secret id that .env holds. Run it once in the container
# after `bao operator init` and `bao operator unseal` (docker-compose.yaml says how), and again to change either id.
# Needs BAO_TOKEN (the root token, or one that may write policies and auth methods).
set -eu

: "${BAO_TOKEN:?set BAO_TOKEN to a token that may write policies and auth methods}"
: "${APP038_VAULT_ROLE_ID:?missing in .env}"
: "${APP038_VAULT_SECRET_ID:?missing in .env}"
here=$(dirname "$0")

bao policy write recovery-backup "$here/../vault/backup.hcl"
bao policy write recovery-canary "$here/../vault/canary.hcl"
# The key of the canary, a row of App038's database that drills decrypt.
if ! bao secrets list -format=json | grep -q '"transit/"'; then
  bao secrets enable transit
fi
bao write -f transit/keys/recovery-canary
if ! bao auth list -format=json | grep -q '"approle/"'; then
  bao auth enable approle
fi
# A role that is there already goes first, and with it every secret id that was valid until now.
bao delete auth/approle/role/recovery-backup
bao write auth/approle/role/recovery-backup token_policies=recovery-backup,recovery-canary token_ttl=1h token_max_ttl=4h
# Through standard input: an argument could be read in the process list.
printf '%s' "$APP038_VAULT_ROLE_ID" | bao write auth/approle/role/recovery-backup/role-id role_id=-
printf '%s' "$APP038_VAULT_SECRET_ID" |
  bao write auth/approle/role/recovery-backup/custom-secret-id secret_id=- >/dev/null
echo "the backup worker can log in to OpenBao"
