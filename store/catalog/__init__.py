"""Workspaces, agents and tools."""
