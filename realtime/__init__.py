"""Publishes the progress of sessions over pub/sub, and follows a session's log with it."""
