"""The database: named queries and changes, each in a short transaction."""
