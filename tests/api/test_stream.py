"""The log as server-sent events."""
