"""Servers of other libraries, one library a file: see ``fastsock/bench/_serve.py``."""
