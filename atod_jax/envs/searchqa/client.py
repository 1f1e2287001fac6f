"""A retriever that asks a server of the Search-R1 protocol.

POST {"queries": [text, ...], "topk": k, "return_scores": true} is answered by {"result": [...]}:
for every query a list of {"document": {"id", "contents"}, "score"}. Servers that know only
{"query": text} are asked query by query.
"""

import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import urllib3

from atod_jax.envs.searchqa.retrieve import Hit, RetrieverError

START = "python -m atod_jax.envs.searchqa.server --corpus FILE --port N [--host 0.0.0.0]"
RETRIES, TIMEOUT = 10, 30.0
_CONNECTIONS = 64  # kept open; a thread waits for one where all are in use
_BUSY = (429, 500, 502, 503, 504)


class HttpRetriever:
    """Searches through `url`; instances may be shared by threads.

    Connections are kept open. Errors of the connection, time-outs (`timeout` seconds) and answers
    of an overloaded or broken server are retried up to `retries` times, with waits that double.
    """

    def __init__(self, url: str, *, retries: int = RETRIES, timeout: float = TIMEOUT):
        self.url = endpoint(url)
        self._one_by_one = False  # found out by asking
        self._http = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            block=True,
            timeout=urllib3.Timeout(timeout),
            retries=urllib3.Retry(
                total=retries,
                allowed_methods=None,  # a search may be repeated
                status_forcelist=_BUSY,
                backoff_factor=0.1,
                backoff_max=10.0,
                backoff_jitter=0.1,
                respect_retry_after_header=False,
                raise_on_status=False,
            ),
        )

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` hits per query, best first.

        Raises:
          RetrieverError: no usable answer after all retries, with the URL and the reason.
        """
        if self._one_by_one:
            return [self._ask({"query": query}, 1, topk)[0] for query in queries]
        try:
            return self._ask({"queries": list(queries)}, len(queries), topk)
        except _NotUnderstoodError:
            self._one_by_one = True
            return self.search(queries, topk)

    def _ask(self, asked: dict[str, Any], count: int, topk: int) -> list[list[Hit]]:
        body = {**asked, "topk": topk, "return_scores": True}
        try:
            response = self._http.request("POST", self.url, json=body)
        except urllib3.exceptions.HTTPError as error:
            raise RetrieverError(f"{self.url}: no answer ({error})") from error
        if response.status in (400, 422) and "queries" in asked:
            raise _NotUnderstoodError
        if response.status != 200:
            reason = response.data[:200].decode(errors="replace")
            raise RetrieverError(f"{self.url}: status {response.status} ({reason})")
        try:
            return _results(response.json(), count, topk)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RetrieverError(
                f"{self.url}: not an answer of this protocol: {type(error).__name__} {error}"
            ) from error


class _NotUnderstoodError(Exception):
    """The server refuses the form of the request."""


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
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"env.searchqa.retriever={url!r}: give a URL such as http://localhost:8000/retrieve"
        )
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/retrieve"


def connect(url: str) -> HttpRetriever:
    """A retriever behind `url`, after a look whether anything listens there.

    Raises:
      ValueError: no http URL, or nothing listens, with the command that starts a server.
    """
    retriever = HttpRetriever(url)
    parts = urlsplit(retriever.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"env.searchqa.retriever={url!r}: nothing answers there ({error}); start a server with:"
            f" {START}"
        ) from error
    return retriever
