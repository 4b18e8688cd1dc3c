"""A turn as its workspace sees it."""
