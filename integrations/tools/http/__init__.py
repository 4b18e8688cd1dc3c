"""Tools behind an HTTP endpoint."""
