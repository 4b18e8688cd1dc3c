"""What to do: pure decisions over a session's events. No I/O, and nothing else of ours is imported here."""
