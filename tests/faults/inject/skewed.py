"""A wall clock that is off, for every way in which a module can ask it."""

import datetime as dt
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any


def skew_time(seconds: float) -> None:
    """Move the `time` module's wall clock, for whoever imports from it after this."""
    true_time, true_ns = time.time, time.time_ns
    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_ns() + round(seconds * 1e9)


def skew_dates(seconds: float) -> Callable[[ModuleType], None]:
    """Return a patch that moves `datetime` as a module knows it: the class, or its module."""
    Skewed.by = dt.timedelta(seconds=seconds)
    skewed = ModuleType("datetime")
    vars(skewed).update(vars(dt) | {"datetime": Skewed})

    def patch(module: ModuleType) -> None:
        for name, found in list(vars(module).items()):
            if found is dt.datetime:
                setattr(module, name, Skewed)
            elif found is dt:
                setattr(module, name, skewed)

    return patch


class _Meta(type):
    """Anything but the clock is the real class's, whose instances are what there is."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(dt.datetime, name)

    def __call__(cls, *args: Any, **options: Any) -> dt.datetime:
        return dt.datetime(*args, **options)  # noqa: DTZ001  # as it is asked for

    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, dt.datetime)


class Skewed(metaclass=_Meta):
    """What `datetime.datetime` is replaced with; the class itself cannot be changed."""

    by = dt.timedelta(0)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        """Return the time, off by `by`."""
        return dt.datetime.now(tz) + cls.by

    @classmethod
    def utcnow(cls) -> dt.datetime:
        """Return the time, off by `by`."""
        return dt.datetime.utcnow() + cls.by  # noqa: DTZ003  # as it is asked for

    @classmethod
    def today(cls) -> dt.datetime:
        """Return the time, off by `by`."""
        return cls.now()  # the real one asks `time.time`, which is off already
