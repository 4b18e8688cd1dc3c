"""How it is kept: named questions and changes on the tables, in short transactions."""
