"""Prompts, token counts and prices."""
