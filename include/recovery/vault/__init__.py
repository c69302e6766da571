"""HashiCorp Vault and OpenBao: session, snapshots, exports, restore, sandbox nodes."""
