"""What gRPC's Python layer logs of what strangers send: counted, and without what they sent."""

import logging
from types import TracebackType

from ingest_service.tally import Tally

_CORE = "grpc._cython.cygrpc"
#: What it logs, at ERROR and with the first 200 characters, of each header that is not UTF-8; one
#: of them may be a good token.
_ENCODING = "Invalid encoding on"
#: The loop of a gRPC server, whose end `Front` tells.
_MAIN_LOOP = "_server_main_loop"


class _NoStrangers(logging.Filter):
    """Lets lines through, but for those that anybody can cause and that quote what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self._tally = Tally("warning")

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(_ENCODING):
            self._tally.note("metadata_not_utf8")
            return False
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(record.msg, UnicodeDecodeError) or _ended_a_server(error))


def quieten_grpc() -> None:
    """Have such lines counted from now on, in the running loop."""
    for name in (_CORE, "asyncio"):
        logger = logging.getLogger(name)
        logger.filters[:] = [_NoStrangers()]


def _ended_a_server(error: BaseException | None) -> bool:
    """Whether asyncio tells of the end of a server's loop: nobody asks gRPC's task for it."""
    trace: TracebackType | None = error.__traceback__ if error else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_name == _MAIN_LOOP
