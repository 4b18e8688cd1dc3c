"""Request and response bodies, one file per noun.

Responses are encoded from rows (`api/responses.py`); these classes describe them for OpenAPI, and tests compare the two.
"""
