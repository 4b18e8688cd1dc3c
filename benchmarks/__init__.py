"""Benchmarks: each module prints one table. Run one with `python -m benchmarks.NAME`; `--help` lists its options.

CPU time per turn compares best between runs, then ratios from one run. Absolute times depend on the machine and its load.
"""
