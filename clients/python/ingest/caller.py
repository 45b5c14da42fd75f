"""Making calls: the token, the deadline, the repeating, and the translation of errors.

Knows gRPC but none of the service's methods.
"""

import threading
from collections.abc import Callable
from typing import TypeVar, cast

import grpc

from ingest.errors import AuthenticationFailed
from ingest.retry import RetryPolicy, call_until_answered
from ingest.status import error_from_call

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class Caller:
    """The caller on whose behalf calls are made, and how patiently."""

    def __init__(self, token: str | Callable[[], str], policy: RetryPolicy) -> None:
        self.policy = policy
        self._token = token
        self._closed = threading.Event()

    def close(self) -> None:
        """End every pause, now and from now on."""
        self._closed.set()

    def pause(self, seconds: float) -> None:
        """Wait, unless closed meanwhile."""
        self._closed.wait(seconds)

    def ask(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Answer]",
        request: _Request,
        timeout: float | None,
    ) -> _Answer:
        """Make a unary call, with `timeout` for all its attempts together.

        Raises:
            IngestError: it failed for good.

        """

        def attempt(seconds: float) -> _Answer:
            with translated_errors:
                return method(request, timeout=seconds, metadata=self.metadata())

        return self.until_answered(attempt, self.policy.attempt_timeout, timeout)

    def until_answered(
        self, attempt: Callable[[float], _Answer], attempt_timeout: float, timeout: float | None
    ) -> _Answer:
        """Make attempts as the policy says; `call_until_answered` explains them."""
        return call_until_answered(
            attempt,
            policy=self.policy,
            attempt_timeout=attempt_timeout,
            timeout=timeout,
            pause=self.pause,
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Say who is calling, with the token as it is now.

        Raises:
            AuthenticationFailed: there is none, or none that can be sent.

        """
        token = (self._token if isinstance(self._token, str) else self._token()).strip()
        # Checked here because gRPC would show the token in its error.
        if not token or not token.isascii() or not token.isprintable():
            raise AuthenticationFailed("the token is empty or holds unprintable characters")
        return (("authorization", f"Bearer {token}"),)


class _TranslatedErrors:
    """Turns the errors of the calls made inside it into `ingest.errors`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, grpc.RpcError):
            # Every error of a synchronous call is a grpc.Call as well.
            raise error_from_call(cast("grpc.Call", error)) from error


translated_errors = _TranslatedErrors()
