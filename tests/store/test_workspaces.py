"""Workspaces, their keys, and what a key may do."""
