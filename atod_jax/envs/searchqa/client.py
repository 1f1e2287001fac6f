"""A retriever that asks a server of the Search-R1 protocol.

POST {"queries": [text, ...], "topk": k, "return_scores": true} is answered by {"result": [...]}:
for every query a list of {"document": {"id", "contents"}, "score"}. Servers that know only
{"query": text} are asked query by query.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from atod_jax.envs.searchqa.retrieve import Hit, RetrieverError

START = "python -m atod_jax.envs.searchqa.server --corpus FILE --port N [--host 0.0.0.0]"
RETRIES, TIMEOUT = 10, 20.0
DEADLINE = 45.0  # seconds of a search with all its tries; less than the default env.timeout
LARGEST_ANSWER = 2**24  # bytes, unpacked
_CHUNK = 2**16
_ARRIVAL = 5.0  # seconds in which a server that was never seen may still be starting
_REST = 15.0  # seconds in which nothing is asked after a search that nobody answered
_REMEMBERED = 60.0  # seconds in which a server is asked query by query before lists are tried again
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_CONNECTIONS = 64  # kept open; a thread waits for one where all are in use
# what misshapen JSON leads to
_ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_BUSY = (429, 500, 502, 503, 504)


class HttpRetriever:
    """Searches through `url`; instances may be shared by threads.

    Connections are kept open. Errors of the connection, time-outs (`timeout` seconds) and answers
    of an overloaded or broken server are retried up to `retries` times, with waits that double, and
    for `deadline` seconds in all. After a search that nobody answered, the next ones fail at once
    for a moment: an outage is found out once, not by every episode.
    """

    def __init__(
        self,
        url: str,
        *,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
        deadline: float = DEADLINE,
    ):
        self.url = endpoint(url)
        self._retries, self._timeout, self._deadline = retries, timeout, deadline
        self._one_by_one_until = self._rests_until = 0.0  # by time.monotonic
        self._outage, self._reached = "", False
        self._http = urllib3.PoolManager(maxsize=_CONNECTIONS, block=True, retries=False)
        self._http.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def reach(self) -> None:
        """Looks, until it has once been so, whether anything listens there; waits for a moment.

        Raises:
          ValueError: nothing listens, with the command that starts a server.
        """
        if self._reached:
            return
        parts, until, wait = urlsplit(self.url), time.monotonic() + _ARRIVAL, _FIRST_WAIT
        port = parts.port or (443 if parts.scheme == "https" else 80)
        while True:
            try:
                if time.monotonic() < self._rests_until:
                    raise OSError(self._outage)
                socket.create_connection((parts.hostname, port), timeout=_ARRIVAL).close()
            except OSError as error:
                if time.monotonic() + wait < until and time.monotonic() >= self._rests_until:
                    time.sleep(wait)
                    wait *= 2
                    continue
                self._rest(str(error))
                raise ValueError(
                    f"env.searchqa.retriever={self.url!r}: nothing answers there ({error}); start "
                    f"a server with: {START}"
                ) from error
            self._reached = True
            return

    def _rest(self, outage: str) -> None:
        """Asks nothing for a moment, unless it does so already."""
        if time.monotonic() >= self._rests_until:
            self._outage, self._rests_until = outage, time.monotonic() + _REST

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` hits per query, best first.

        Raises:
          RetrieverError: no usable answer after all retries, with the URL and the reason.
        """
        until = time.monotonic() + self._deadline
        if time.monotonic() >= self._one_by_one_until:
            try:
                return self._ask({"queries": list(queries)}, len(queries), topk=topk, until=until)
            except _NotUnderstoodError:
                pass  # by this server, or this once
        found = [self._ask({"query": q}, 1, topk=topk, until=until)[0] for q in queries]
        if time.monotonic() >= self._one_by_one_until:
            self._one_by_one_until = time.monotonic() + _REMEMBERED
        return found

    def _ask(
        self, asked: dict[str, Any], count: int, *, topk: int, until: float
    ) -> list[list[Hit]]:
        body = json.dumps({**asked, "topk": topk, "return_scores": True}).encode()
        status, content = self._answer(body, until)
        if status in (400, 422) and "queries" in asked:
            raise _NotUnderstoodError
        if status != 200:
            raise RetrieverError(f"{self.url}: status {status} ({_text(content)})")
        try:
            return _results(json.loads(content), count, topk)
        except _ODD as error:
            raise RetrieverError(
                f"{self.url}: not an answer of this protocol: {type(error).__name__} {error}"
            ) from error

    def _answer(self, body: bytes, until: float) -> tuple[int, bytes]:
        """(status, content) of the first answer that is none of a busy or broken server; the last
        one of such a server.

        Raises:
          RetrieverError: nobody answers.
        """
        if time.monotonic() < self._rests_until:
            raise RetrieverError(f"{self.url}: gave no answer a moment ago ({self._outage})")
        wait, tries = _FIRST_WAIT, 0
        while True:
            tries += 1
            try:
                status, content = self._once(body, until)
                outage = f"status {status} ({_text(content)})"
            except urllib3.exceptions.HTTPError as error:
                status, content, outage = 0, b"", f"no answer ({error})"
            if status and status not in _BUSY:
                return status, content
            if tries > self._retries or time.monotonic() + wait >= until:
                self._rest(outage)
                raise RetrieverError(f"{self.url}: {outage}")
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _once(self, body: bytes, until: float) -> tuple[int, bytes]:
        """(status, content) of one answer.

        Raises:
          urllib3.exceptions.HTTPError: none comes in time.
          RetrieverError: it is too long.
        """
        began, error = time.monotonic(), None
        left = max(0.001, min(self._timeout, until - began))
        try:
            answer = self._exchange(body, left)
        except urllib3.exceptions.HTTPError as problem:
            answer, error = (0, b""), problem
        if time.monotonic() > began + left:
            error = urllib3.exceptions.TimeoutError(f"not whole after {left:.3g} s")
        if error:
            raise error
        return answer

    def _exchange(self, body: bytes, seconds: float) -> tuple[int, bytes]:
        response: Any = self._http.request(
            "POST",
            self.url,
            body=body,
            headers={"Content-Type": "application/json"},
            timeout=seconds,
            preload_content=False,
        )
        parts, size = [], 0
        try:
            while part := response.read1(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise RetrieverError(f"{self.url}: answers more than {LARGEST_ANSWER} bytes")
        finally:
            response.hurry.cancel()
            response.close()
            response.release_conn()
        return response.status, b"".join(parts)


class _Hurried:
    """A connection whose answer has to be whole within its time-out: the library bounds every read,
    of which a server that sends byte by byte, or heads without an end, can make any number."""

    def getresponse(self) -> Any:
        """The answer; its `hurry` hangs up unless it is cancelled."""
        connection, above = cast(HTTPConnection, self), cast(Any, super())
        hurry = threading.Timer(cast(float, connection.timeout), _hang_up, [connection.sock])
        hurry.daemon = True
        hurry.start()
        try:
            response = above.getresponse()
        except BaseException:
            hurry.cancel()
            raise
        response.hurry = hurry
        return response


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed
        connection.shutdown(socket.SHUT_RDWR)


class _Connection(_Hurried, HTTPConnection): ...


class _SecureConnection(_Hurried, HTTPSConnection): ...


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = cast(Any, _Connection)


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = cast(Any, _SecureConnection)


class _NotUnderstoodError(Exception):
    """The server refuses the form of the request."""


def _text(content: bytes) -> str:
    """The beginning of what a server says, for a message of one line."""
    return " ".join(content[:200].decode(errors="replace").split())


def _results(answer: Any, count: int, topk: int) -> list[list[Hit]]:
    results = answer["result"]
    if not isinstance(results, list) or len(results) != count:
        raise ValueError(f"expected a list of {count} results")
    return [[_hit(item) for item in result[:topk]] for result in results]


def _hit(item: dict[str, Any]) -> Hit:
    document = item.get("document", item)
    if not isinstance(document["contents"], str):
        raise ValueError("contents are no text")
    return Hit(str(document.get("id", "")), document["contents"], float(item.get("score", 0.0)))


def endpoint(url: str) -> str:
    """The URL that is posted to: `/retrieve` where `url` names a machine only.

    Raises:
      ValueError: no http URL.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:  # a port beyond 65535, an open bracket
        parts, host = urlsplit(""), None
    if not host:
        raise ValueError(
            f"env.searchqa.retriever={url!r}: give a URL such as http://localhost:8000/retrieve"
        )
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/retrieve"
