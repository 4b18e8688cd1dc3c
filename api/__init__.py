"""The HTTP API and its server-sent events."""
