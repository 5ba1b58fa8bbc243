"""Certificates: one order for the whole cluster, a ledger of it, keys encrypted, renewal by the leader."""
