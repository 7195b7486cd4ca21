"""Long proofs of multiplexing: many connections for long, and descriptors that are used again.

``python -m soak`` (ci/soak calls it). ``connections``: a server in a process of its own, looked at
from outside; ``load`` is one of the processes of its clients. ``torture``: connections that are
closed by others than those who wait for them. ``handlers``: random handlers, run by greenlets and
by threads.
"""
