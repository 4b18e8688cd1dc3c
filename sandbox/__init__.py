"""A fake model provider and tool server on loopback, for the demo, the tests and the benchmarks.

Run it with `python -m sandbox`. It imports no other package of this repository.
"""
