"""The turn: its context and state, decisions, commits, and the runner."""
