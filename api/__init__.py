"""The front door: HTTP and server-sent events."""
