"""Held ports: one process per machine keeps the listening sockets, and lends them to the node that serves."""
