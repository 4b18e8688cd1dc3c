"""The turn: state, decisions, commits and the runner."""
