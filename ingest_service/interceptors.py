"""Stands in front of every call: who is calling, and what an error becomes on the wire."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from eventstore.settings import Settings
from ingest.v1 import ingest_service_pb2
from ingest_service.answers import Answers
from ingest_service.auth import TokenVerifier
from ingest_service.call_timer import CallTimer
from ingest_service.calls import OpenCalls
from ingest_service.errors import (
    FieldInvalid,
    IngestError,
    RateLimited,
    Refused,
    Unauthenticated,
    Unavailable,
    Violation,
)
from ingest_service.parse import parse_message
from ingest_service.principal import READ, WRITE, Principal, current_principal
from ingest_service.status import internal_status, to_status
from ingest_service.tally import Tally

log = structlog.get_logger()

#: What each call needs; a call that is not named here is refused to everybody.
SCOPES: Mapping[str, str] = {
    "SubmitEvent": WRITE,
    "BatchSubmitEvents": WRITE,
    "StreamEvents": WRITE,
    "GetEvent": READ,
    "ListEvents": READ,
    "GetEventCounts": READ,
}
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICES = frozenset(
    {"grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
)
#: Seconds of a deadline below which a unary call is not begun.
_LEAST_REMAINING = 0.05

_SERVICE = ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"]
#: What a call is handed: the message, or where events are submitted its bytes, which are parsed
#: only after what limits them.
_PARSERS: Mapping[str, "Parser"] = {
    f"/{_SERVICE.full_name}/{method.name}": (
        bytes
        if SCOPES[method.name] == WRITE
        else partial(parse_message, GetMessageClass(method.input_type))
    )
    for method in _SERVICE.methods
}

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
E = TypeVar("E", bound=Exception)
Parser: TypeAlias = Callable[[bytes], Message | bytes]
Behaviour: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"


class Gate(grpc.aio.ServerInterceptor):
    """Authenticates, authorises, parses, calls, and turns exceptions into statuses.

    One interceptor for all of it, because they need each other in this order: a token is checked
    before any message is read, and what goes wrong anywhere becomes one of the table's statuses.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        calls: OpenCalls,
        answers: Answers,
        settings: Settings,
    ) -> None:
        """Take collaborators."""
        self._verifier = verifier
        self._calls = calls
        self._answers = answers
        self._tally = Tally()
        self._arrivals = CallTimer(
            settings.stream_idle_seconds, "no message came in time", self._tally
        )
        # It takes up to twice as long, and the setting is what it takes at most.
        self._answering = CallTimer(
            settings.unary_max_seconds / 2,
            "not answered in time; what was sent may be stored",
            self._tally,
        )
        reflection = REFLECTION_SERVICES if settings.reflection else frozenset()
        self._public = {HEALTH_SERVICE} | reflection

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return a handler that is bound to the caller, or one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None:
            # Such a method may have any form, not only that of the next line.
            return None
        _, service, name = handler_call_details.method.split("/", 2)
        if service == HEALTH_SERVICE:
            return self._health(handler)
        if service in self._public:
            return self._reflection(handler)
        try:
            principal = self._verifier.authenticate(
                [
                    value
                    for key, value in handler_call_details.invocation_metadata
                    if key == "authorization"
                ]
            )
            principal.require_scope(SCOPES.get(name, ""))
            self._calls.check()
        except IngestError as error:
            if isinstance(error, Unauthenticated):
                self._tally.note("call_unauthenticated", reason=error.reason, cause=error.cause)
            return _refusal(error)
        return self._bound(handler, principal, _PARSERS[handler_call_details.method])

    def _health(self, handler: Any) -> Handler:
        """Return a handler of health, for everybody, that waits for its message as others do."""

        async def check(_wires: AsyncIterator[bytes], context: Context) -> Any:
            return await handler.unary_unary(await self._health_request(context), context)

        async def watch(_wires: AsyncIterator[bytes], context: Context) -> None:
            await handler.unary_stream(await self._health_request(context), context)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                watch,
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_unary_rpc_method_handler(
            check, response_serializer=handler.response_serializer
        )

    def _reflection(self, handler: Any) -> Handler:
        """Return a handler of reflection, for everybody, that parses messages as others do."""

        async def info(wires: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            requests = (parse_message(ServerReflectionRequest, wire) async for wire in wires)
            try:
                async for answer in handler.stream_stream(requests, context):
                    yield answer
            except FieldInvalid as error:
                await self._abort(context, error)

        return grpc.stream_stream_rpc_method_handler(
            info, response_serializer=handler.response_serializer
        )

    async def _health_request(self, context: Context) -> HealthCheckRequest:
        wire = await self._message(context)
        try:
            return parse_message(HealthCheckRequest, wire)
        except FieldInvalid as error:
            await self._abort(context, error)

    def _bound(self, handler: Any, principal: Principal, parse: Parser) -> Handler:
        """Return the handler with the caller bound to it.

        It takes bytes: what is parsed here can be refused with a status of ours. A unary one also
        returns bytes: gRPC would keep the message beside them until the client took the answer.
        """
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                partial(self._call_stream, handler.stream_unary, principal),
                response_serializer=handler.response_serializer,
            )
        return grpc.stream_unary_rpc_method_handler(
            partial(self._call_unary, handler.unary_unary, principal, parse)
        )

    async def _call_unary(
        self,
        behaviour: Behaviour,
        principal: Principal,
        parse: Parser,
        _wires: AsyncIterator[bytes],
        context: Context,
    ) -> bytes:
        current_principal.set(principal)
        wire = await self._message(context)
        # None without a deadline, whatever the type stub says.
        remaining: float | None = context.time_remaining()
        if remaining is not None and remaining < _LEAST_REMAINING:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too little time is left")
        self._calls.enter()
        try:
            work = behaviour(parse(wire), context)
            answer: Message = await self._answering.limit(work, context)
            sent = answer.SerializeToString()
        except Exception as error:  # noqa: BLE001  # this is the one door
            del wire  # see _forgetful
            await self._abort(context, error)
        finally:
            self._calls.leave()
        self._answers.settle(context, len(sent))
        return sent

    async def _message(self, context: Context) -> bytes:
        """Return the message of a unary call; gRPC itself would wait for it without end."""
        try:
            wire = await self._arrivals.limit(context.read(), context)
        except Exception as error:  # noqa: BLE001  # this is the one door
            await self._abort(context, error)
        if wire is grpc.aio.EOF:
            await self._abort(context, FieldInvalid([Violation("", "a message is required")]))
        return cast("bytes", wire)

    async def _call_stream(
        self,
        behaviour: Behaviour,
        principal: Principal,
        wires: AsyncIterator[bytes],
        context: Context,
    ) -> Any:
        current_principal.set(principal)
        self._calls.enter()
        try:
            return await behaviour(wires, context)
        except Exception as error:  # noqa: BLE001  # this is the one door
            await self._abort(context, error)
        finally:
            self._calls.leave()

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        """End the call with the status of an exception; one that nobody foresaw is INTERNAL."""
        if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
            raise _forgetful(error)
        if isinstance(error, Refused | RateLimited | Unavailable):
            if not isinstance(error, Refused):
                self._tally.note("call_refused", reason=error.reason)
            await context.abort_with_status(to_status(_forgetful(error)))
        request_id = uuid.uuid4().hex
        log.error("call_failed", request_id=request_id, exc_info=error)
        await context.abort_with_status(internal_status(request_id))
        raise AssertionError("abort returned")


def _forgetful(error: E) -> E:
    """Cut an exception off what it came from.

    gRPC keeps the one that ended a call, and with it would be kept the request, whose memory
    Python's collector of cycles knows nothing of.
    """
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


def _refusal(error: IngestError) -> Handler:
    """Return a handler that ends the call before it reads anything.

    On the wire a unary call is a stream of one message; as a stream it can be refused without
    waiting for that message, which a hostile client never sends.
    """

    async def refuse(_requests: AsyncIterator[bytes], context: Context) -> Any:
        await context.abort_with_status(to_status(error))

    return grpc.stream_unary_rpc_method_handler(refuse)
