"""Files from the web: fetched within limits of size and time, and checked against their SHA-256 (by pooch)."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO, Any

import pooch
import requests

BLOCK = 1 << 16
READ_SECONDS = 30  # for connecting, and for each read
HEADERS = {"User-Agent": "memlib"}
pooch.get_logger().setLevel("WARNING")  # It would announce every file on standard error.


class DownloadError(OSError):
    """An address gave no usable file; `again` says whether another try may help."""

    def __init__(self, reason: str, again: bool = False):
        super().__init__(reason)
        self.again = again


class WrongFile(ValueError):
    """An address gave another file than the one whose SHA-256 is known."""


def offline() -> bool:
    """Say whether ``MEMLIB_OFFLINE`` forbids fetching."""
    return os.environ.get("MEMLIB_OFFLINE", "") not in ("", "0")


def published_file(url: str, path: Path, sha256: str | None, *, max_bytes: int, seconds: float) -> Path:
    """Return `path` once the file there is the one with this SHA-256 (any, if None), fetching it where it is not.

    Only verified bytes get the name. Raises DownloadError if the address gives nothing, WrongFile if it gives another file, and
    OSError if the folder cannot be written.
    """

    def downloader(address: str, target: str, _: Any) -> None:
        with open(target, "wb") as file:
            # The addresses stand in this project's own tables and what they give is checked, so that they may be local.
            download(address, file, max_bytes=max_bytes, seconds=seconds, local=True)

    known = None if sha256 is None else f"sha256:{sha256}"
    try:
        return Path(pooch.retrieve(url, known_hash=known, fname=path.name, path=path.parent, downloader=downloader))
    except ValueError as error:
        raise WrongFile(str(error).split(". ")[0]) from error


def download(url: str, file: IO[bytes], *, max_bytes: int, seconds: float, local: bool = False) -> None:
    """Write what `url` gives to `file`: at most `max_bytes`, within `seconds` altogether, redirects included.

    Addresses of this machine or its network are refused, whether given or redirected to, unless `local`: whoever writes a list
    must not make its reader's machine ask his own services. Blanks and other signs that an address may not hold are quoted.
    Raises DownloadError with the reason.
    """
    try:
        quoted = requests.Request("GET", url.strip()).prepare().url or ""
    except ValueError as error:  # requests' errors about addresses are ValueErrors, too
        raise DownloadError("no web address") from error
    if not quoted.startswith(("http://", "https://")):
        raise DownloadError("no web address")
    request = urllib.request.Request(quoted, headers=HEADERS)
    guard = _Guard(time.monotonic() + seconds, local)
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPRedirectHandler(), urllib.request.HTTPErrorProcessor(),
                    urllib.request.HTTPDefaultErrorHandler(), urllib.request.UnknownHandler(), guard):  # fmt: skip
        opener.add_handler(handler)
    try:
        with opener.open(request, timeout=min(seconds, READ_SECONDS)) as answer:
            _copy(answer, file, max_bytes)
        if time.monotonic() >= guard.deadline:  # an answer that names no length ends as if it were whole
            raise DownloadError("takes too long", again=True)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"answers {error.code}", again=error.code == 429 or error.code >= 500) from error
    except (HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib wraps what was raised while connecting
        if isinstance(reason, DownloadError):
            raise reason from None
        raise DownloadError("takes too long" if time.monotonic() >= guard.deadline else "does not answer", again=True) from error
    finally:
        guard.close()


def _copy(answer: HTTPResponse, file: IO[bytes], max_bytes: int) -> None:
    promised, held = answer.headers.get("Content-Length"), 0
    while block := answer.read(BLOCK):
        held += len(block)
        if held > max_bytes:
            raise DownloadError("too large")
        file.write(block)
    # A read of so many bytes does not notice by itself that the connection broke off.
    if promised is not None and promised.isdigit() and held != int(promised):
        raise DownloadError("broken off", again=True)


class _Guard(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens connections that end at a deadline and, unless they may be local, lead out of this machine's network."""

    def __init__(self, deadline: float, local: bool):
        super().__init__()
        self.deadline, self._local = deadline, local
        self._watched: list[tuple[threading.Timer, socket.socket]] = []

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self._open(HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self._open(HTTPSConnection, request, context=ssl.create_default_context())

    def close(self) -> None:
        """Stop watching."""
        for timer, watched in self._watched:
            timer.cancel()
            watched.close()

    def _open(self, kind: type[HTTPConnection], request: urllib.request.Request, **options: Any) -> HTTPResponse:
        # Behind a proxy the connection leads to the proxy, and what lies beyond is its decision.
        anywhere = self._local or request.has_proxy() or bool(getattr(request, "_tunnel_host", None))

        def connected(*arguments: Any, **settings: Any) -> socket.socket:
            opened = socket.create_connection(*arguments, **settings)
            # The address that was connected to counts, and not a name that may stand for another one a moment later.
            found = ipaddress.ip_address(opened.getpeername()[0].partition("%")[0])
            if not (anywhere or (getattr(found, "ipv4_mapped", None) or found).is_global):
                opened.close()
                raise DownloadError("a local address")
            # A timeout is for each read: a server that sends a byte now and then would be waited for without end.
            watched = opened.dup()  # encryption takes the socket itself over
            timer = threading.Timer(max(0.0, self.deadline - time.monotonic()), _end, [watched])
            timer.daemon = True
            timer.start()
            self._watched.append((timer, watched))
            return opened

        def connection(host: str, **settings: Any) -> HTTPConnection:
            made = kind(host, **settings)
            made._create_connection = connected  # type: ignore[attr-defined]  # where http.client takes its sockets from
            return made

        return self.do_open(connection, request, **options)


def _end(watched: socket.socket) -> None:
    with suppress(OSError):  # the other side may have closed it already
        watched.shutdown(socket.SHUT_RDWR)
