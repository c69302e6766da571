# OpenBao as docker-compose.yaml runs it: one node with Raft storage, because snapshots exist for Raft storage only.
# No TLS: nothing outside the compose network reaches it. Give the listener a certificate before publishing its port.

storage "raft" {
  path    = "/openbao/file"
  node_id = "openbao"
}

listener "tcp" {
  address     = "0.0.0.0:8200"
  tls_disable = true
}

# Standbys and redirected snapshot calls use this name.
api_addr     = "http://openbao:8200"
cluster_addr = "http://openbao:8201"
