"""Who may do what: every operation, tried with no key, a read key, and the key of another workspace."""
