"""Benchmarks behind docs/performance.md: scripts that import the product; the product does not import them."""
