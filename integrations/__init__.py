"""The outside: everything that waits on someone else's machine. No module here sees the database."""
