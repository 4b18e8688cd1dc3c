"""Rollups and the queries on them."""
