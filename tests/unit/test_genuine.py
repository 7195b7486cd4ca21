"""Whether a class of the standard library was patched is noticed, and that it was undone."""

from __future__ import annotations

import gc
from typing import Any
from unittest import mock

import pytest

from fastsock._genuine import Genuine

NAMES = ("own", "inherited", "absent")


@pytest.fixture
def cls() -> Any:
    class Base:
        def inherited(self) -> str:
            return "base"

    class Patched(Base):
        def own(self) -> str:
            return "own"

        def unnamed(self) -> str:
            return "unnamed"

    return Patched


@pytest.mark.parametrize("asked", [0, 1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_patched_and_undone(cls: Any, name: str, asked: int) -> None:
    """However often it was asked before."""
    genuine = Genuine(cls, NAMES)
    assert genuine.original is cls
    for _ in range(3):
        for _ in range(asked):
            assert genuine
        with mock.patch.object(cls, name, create=True):
            assert not genuine
            getattr(cls, name)
            assert not genuine
        assert genuine
        cls().own()
        assert genuine


def test_set_and_deleted(cls: Any) -> None:
    genuine = Genuine(cls, NAMES)
    assert genuine
    cls.absent = 1
    assert not genuine
    cls.absent = 2
    assert not genuine
    del cls.absent
    assert genuine
    own = cls.own
    del cls.own
    assert not genuine
    cls.own = lambda self: "another"
    assert not genuine
    cls.own = own
    assert genuine


def test_other_names_are_nobodys_business(cls: Any) -> None:
    genuine = Genuine(cls, NAMES)
    assert genuine
    cls.unnamed = cls.more = None
    assert genuine
    cls.own = None
    assert not genuine


def test_many_changes(cls: Any) -> None:
    """More than there are versions of a class in some Pythons."""
    genuine, own = Genuine(cls, NAMES), cls.own
    for _ in range(3000):
        cls.own = None
        assert not genuine
        cls.own = own
        assert genuine
        cls().own()


def test_looked_up_in_between(cls: Any) -> None:
    """Look-ups give a class a new version; that does not hide a change."""
    genuine = Genuine(cls, NAMES)
    assert genuine
    with mock.patch.object(cls, "own", lambda self: "patched"):
        assert cls().own() == "patched"
        assert not genuine
        assert cls().own() == "patched" and cls().inherited() == "base"
        assert not genuine
    assert cls().own() == "own"
    assert genuine


def test_classes_come_and_go() -> None:
    for _ in range(200):
        cls = type("Short", (), {"own": 1})
        genuine = Genuine(cls, NAMES)
        assert genuine
        cls.own = 2  # type: ignore[attr-defined]
        assert not genuine
        del cls, genuine
        gc.collect(0)
