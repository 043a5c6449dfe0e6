"""Benchmarks: `make bench`. Speed is reported, never asserted; lost events are an error."""
