# What the identity that takes snapshots and exports policies needs, and no more. It can change nothing, read no secret
# and restore nothing. (The snapshot itself holds everything, encrypted with the keys that its unseal shares open.)
#
#   vault policy write recovery-backup backup.hcl        (OpenBao: bao policy write recovery-backup backup.hcl)
#   vault write auth/approle/role/recovery-backup token_policies=recovery-backup token_no_default_policy=true \
#     token_ttl=1h token_max_ttl=4h
#
# A right that is missing stops the backup with its path: what a backup does not see cannot be missed afterwards. An
# identity that only takes snapshots (`--type snapshot`) needs the transit keys too: their versions go into the manifest.
# sys/leader, sys/health and sys/seal-status are read as well, and need no token.

# --- snapshots --------------------------------------------------------------------------------------------------------

path "sys/storage/raft/snapshot" {
  capabilities = ["read"]
}

path "sys/storage/raft/configuration" {
  capabilities = ["read"]
}

# --- policies, and what is mounted ------------------------------------------------------------------------------------

path "sys/policies/acl" {
  capabilities = ["list"]
}

path "sys/policies/acl/*" {
  capabilities = ["read"]
}

path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/auth" {
  capabilities = ["read"]
}

# Vault protects this path: reading it needs sudo. Options that may hold a credential are not exported.
path "sys/audit" {
  capabilities = ["read", "sudo"]
}

path "sys/namespaces" {
  capabilities = ["list"]
}

# --- the names of roles -----------------------------------------------------------------------------------------------
# Listing gives names alone; what a role holds stays unread. `+` is one segment: a mount at team/database needs
# "+/+/roles" as well. A KV engine of version 1 with a folder called `roles` would show the names in that folder.

path "auth/+/role" {
  capabilities = ["list"]
}

path "auth/+/roles" {
  capabilities = ["list"]
}

path "auth/+/users" {
  capabilities = ["list"]
}

path "auth/+/groups" {
  capabilities = ["list"]
}

path "auth/+/certs" {
  capabilities = ["list"]
}

path "+/roles" {
  capabilities = ["list"]
}

path "+/static-roles" {
  capabilities = ["list"]
}

# --- transit keys: versions and settings, never the key ---------------------------------------------------------------
# Both for each transit engine, with its mount written out. Not "+/keys/+": that would read the secrets in the folder
# `keys` of a KV engine of version 1. Exporting a key is another path (transit/export/...).

path "transit/keys" {
  capabilities = ["list"]
}

path "transit/keys/+" {
  capabilities = ["read"]
}

# --- its own token ----------------------------------------------------------------------------------------------------

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# --- namespaces -------------------------------------------------------------------------------------------------------
# A policy of the root namespace reaches a child namespace through its path. Each one needs what follows, here written for
# a namespace called `team`, and its transit engines as above ("team/transit/keys"); a nested one is written with its
# whole path ("team/inner/sys/mounts"). Audit devices and snapshots exist in the root namespace only.
#
# path "team/sys/policies/acl" {
#   capabilities = ["list"]
# }
#
# path "team/sys/policies/acl/*" {
#   capabilities = ["read"]
# }
#
# path "team/sys/mounts" {
#   capabilities = ["read"]
# }
#
# path "team/sys/auth" {
#   capabilities = ["read"]
# }
#
# path "team/sys/namespaces" {
#   capabilities = ["list"]
# }
#
# path "team/auth/+/role" {
#   capabilities = ["list"]
# }
#
# path "team/auth/+/roles" {
#   capabilities = ["list"]
# }
#
# path "team/auth/+/users" {
#   capabilities = ["list"]
# }
#
# path "team/auth/+/groups" {
#   capabilities = ["list"]
# }
#
# path "team/auth/+/certs" {
#   capabilities = ["list"]
# }
#
# path "team/+/roles" {
#   capabilities = ["list"]
# }
#
# path "team/+/static-roles" {
#   capabilities = ["list"]
# }
