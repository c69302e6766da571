# What the identity that writes the canary needs: `recovery vault canary` encrypts a row with a transit key of this Vault,
# and drills decrypt it in what they restored. Give it to the backup identity.
#
# The key is for this purpose alone. Where recovery.yaml names another one (keys.canary.key), name it here as well.
#
#   vault secrets enable transit
#   vault write -f transit/keys/recovery-canary
#   vault policy write recovery-canary canary.hcl

path "transit/encrypt/recovery-canary" {
  capabilities = ["update"]
}

path "transit/keys/recovery-canary" {
  capabilities = ["read"]
}
