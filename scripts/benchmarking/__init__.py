"""The benchmarks of scripts/benchmark.py, one module for each kind."""
