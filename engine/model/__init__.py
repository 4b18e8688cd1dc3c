"""Calls of a model: requests, token counts and prices."""
