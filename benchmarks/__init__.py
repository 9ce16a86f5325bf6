"""Benchmarks of gdu-compile: ratios measured in one run, never asserted on."""
