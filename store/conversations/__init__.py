"""Sessions, their log and their turns."""
