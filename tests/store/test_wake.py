"""Passing news over a real Valkey that is stopped, killed and restarted."""
