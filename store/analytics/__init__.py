"""Rollups and queries on them."""
