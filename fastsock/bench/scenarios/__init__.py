"""One scenario a file: what stands in one is said in ``fastsock/bench/_scenarios.py``."""
