"""Tells readers that a session's log advanced, and reads it as a stream."""
