"""The control API: Flask under gunicorn, one process a node.

It imports lyttle_ops; nothing in lyttle_ops imports it. It meets the node process in PostgreSQL and in the
instance's status file, never directly.
"""
