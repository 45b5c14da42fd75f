"""One GET of a small text: whole within its time however it drips, and from nowhere else."""

import io
import socket
import time
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import IO, Any, NoReturn
from urllib.error import HTTPError


def fetch(url: str, seconds: float, most_bytes: int) -> bytes:
    """Return what a URL holds; redirects are refused.

    Connecting may take so many seconds, and so may the answer, headers and all. Raises OSError
    (too late, among others) or ValueError (no HTTP, or more bytes than that).
    """
    # Made anew, as it takes the proxies of the environment: for https, which they cannot read.
    proxies = {name: at for name, at in urllib.request.getproxies().items() if name == "https"}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), _ByHttp, _ByHttps, _NoRedirects
    )
    try:
        with opener.open(url, timeout=seconds) as answer:
            text: bytes = answer.read(most_bytes + 1)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
    except HTTPException as error:
        # Neither an OSError nor a ValueError: an answer that is no HTTP.
        raise ValueError(type(error).__name__) from None
    if len(text) > most_bytes:
        raise ValueError(f"longer than {most_bytes} bytes")
    return text


class _Deadline(io.RawIOBase):
    """What a socket receives until it is too late; its own timeout is for each piece anew."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._end = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer is not whole in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Deadline(self.fp.detach(), sock))


class _Plain(HTTPConnection):
    response_class = _Answer


class _Secure(HTTPSConnection):
    response_class = _Answer


class _ByHttp(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Plain, req)


class _ByHttps(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Secure, req)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to any scheme and any host."""

    def redirect_request(  # noqa: PLR0917  # the base class's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> NoReturn:
        raise HTTPError(req.full_url, code, "redirect refused", headers, fp)
