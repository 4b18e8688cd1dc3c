"""A stand-in model vendor and tool server on loopback, for the demo, the tests and the benchmarks."""
