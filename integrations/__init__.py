"""Calls to other systems: model providers and tools. Never imports the database layer."""
