"""Random programs of server operations, run on two implementations of socketserver.

``program`` is the model of a program, ``drawing`` the hypothesis strategy that draws one, and
``settle`` makes what was drawn a program whose outcome is defined. ``runner`` executes one program
on one implementation and returns its trace, with the server of ``servers``, the handler of
``handlers``, the clients of ``clients``, the waits of ``waiting`` and the notes of ``trace``.
``differences`` is the written list of what may differ. ``python -m differential`` (ci/differential
calls it) runs many programs; ``test_differential`` runs some under pytest.
"""
