"""The least that a gRPC server can do: check the token, parse the messages, answer.

A program; it takes the product's settings, proto, server options and token verifier, and neither
its gate, its decoder nor its intake.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import uvloop

from eventstore.settings import Settings
from ingest.v1 import ingest_service_pb2 as pb
from ingest.v1 import ingest_service_pb2_grpc
from ingest_service import server as product
from ingest_service.auth import TokenVerifier, build_key_source
from ingest_service.revocation import Revocations


class TokenCheck(grpc.aio.ServerInterceptor):
    """Verifies the token of each call, as the product does, and nothing else."""

    def __init__(self, verifier: TokenVerifier) -> None:
        """Take the product's verifier."""
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Raise unless the call has a good token."""
        metadata = handler_call_details.invocation_metadata
        self._verifier.authenticate([value for key, value in metadata if key == "authorization"])
        return await continuation(handler_call_details)


class NoopServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """Answers at once and stores nothing; counts the events, so that refused calls show."""

    def __init__(self) -> None:
        """Begin with none."""
        self.events = 0

    async def SubmitEvent(  # noqa: N802  # the names of calls are those of the contract
        self, request: pb.SubmitEventRequest, context: Any
    ) -> pb.SubmitEventResponse:
        """Count the event and answer."""
        self.events += 1
        return pb.SubmitEventResponse()

    async def StreamEvents(  # noqa: N802  # as above
        self, request_iterator: AsyncIterator[pb.StreamEventsRequest], context: Any
    ) -> pb.StreamEventsResponse:
        """Count the events and answer."""
        received = 0
        async for message in request_iterator:
            received += len(message.events)
        self.events += received
        return pb.StreamEventsResponse(received=received, accepted=received)


async def _serve() -> None:
    settings = Settings.load()
    check = TokenCheck(TokenVerifier(settings, build_key_source(settings), Revocations(None)))
    server = grpc.aio.server(interceptors=[check], options=list(product.OPTIONS))
    servicer = NoopServicer()  # type: ignore[abstract]  # the other calls are not made
    ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(servicer, server)
    server.add_insecure_port(settings.listen)
    await server.start()
    print("server_started", file=sys.stderr, flush=True)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(0)
    print(f"events_served {servicer.events}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
