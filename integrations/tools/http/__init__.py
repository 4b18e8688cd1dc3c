"""Tools behind an HTTP endpoint (`custom_tool`)."""
