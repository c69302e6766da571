# What the identity that writes policies of an export into a running server again needs: `recovery restore vault-policies`.
#
# Who may write policies may give itself any right. Keep this identity out of every worker: make it when it is needed,
# for as long as the work takes, and revoke it.
#
#   vault policy write recovery-restore-policies restore-policies.hcl
#   vault token create -policy=recovery-restore-policies -no-default-policy -ttl=15m -orphan

# Each policy is read before it is written (the plan) and after it (the proof). None is deleted.
path "sys/policies/acl/*" {
  capabilities = ["create", "read", "update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# For policies of a child namespace, here one called `team`. The namespace must be there.
#
# path "team/sys/policies/acl/*" {
#   capabilities = ["create", "read", "update"]
# }
