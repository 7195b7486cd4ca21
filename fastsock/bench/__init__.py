"""The comparison that users can run: ``python -m fastsock bench``.

Servers are the standard library's, fastsock's, other Python libraries' and one in C; each runs in a
process of its own, and so does the load, which is native (:mod:`fastsock.bench._load`). Nothing of
fastsock imports this package but that command.
"""
