"""Coordination through PostgreSQL alone: locks, leadership, members, events."""
