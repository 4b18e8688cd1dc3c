"""Pure decisions over a session's events. It does no I/O and imports nothing else of ours."""
