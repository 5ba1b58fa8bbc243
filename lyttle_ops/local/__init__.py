"""A whole cluster on one machine: PostgreSQL, a CA with its DNS server, N nodes, a demo upstream."""
