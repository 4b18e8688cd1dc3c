"""The log, page by page and waited for."""
