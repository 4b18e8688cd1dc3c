"""Deleting what has expired or must be erased."""
