"""A clock that tests set: the days that `datetime` tells, one after the other."""

import datetime
from collections.abc import Iterable, Iterator

import pytest

_DATE, _DATETIME = datetime.date, datetime.datetime
_days: Iterator[str]


class _Date(_DATE):
    @classmethod
    def today(cls) -> datetime.date:
        return _DATE.fromisoformat(next(_days))


class _DateTime(_DATETIME):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _DATETIME.combine(_Date.today(), datetime.time(), tz)


def tell(monkeypatch: pytest.MonkeyPatch, days: Iterable[str]) -> None:
    """Each look at the clock finds the next of these days."""
    global _days
    _days = iter(days)
    monkeypatch.setattr(datetime, "date", _Date)
    monkeypatch.setattr(datetime, "datetime", _DateTime)
