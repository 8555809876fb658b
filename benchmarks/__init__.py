"""Throughput against the machine's own matrix products and against other libraries: `python -m
benchmarks --help`.
"""
