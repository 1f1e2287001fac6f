"""Serves a corpus to the processes of a run, in the Search-R1 protocol (see `client.py`).

    python -m atod_jax.envs.searchqa.server --corpus=corpus.jsonl.gz --port=8000

Only this machine can ask, unless `--host=0.0.0.0` opens it to every machine that reaches this one.

POST /retrieve takes {"queries": [...]} or {"query": "..."}, with "topk" (default 3) and
"return_scores" (default false: the documents themselves); GET /health says how much is served.
Whatever is sent is bounded: bytes, queries, results, seconds and connections.
"""

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from atod_jax.envs.prepared import one_line_errors
from atod_jax.envs.searchqa import retrieve
from atod_jax.envs.searchqa.retrieve import Hit, Retriever

TOPK, MOST = 3, 100
LARGEST_BODY = 2**22  # bytes
LONGEST_QUERY = 2**16  # characters; what follows is not searched for
MOST_RESULTS = 20_000  # queries x results of a request
MOST_CONNECTIONS = 1024  # each has a thread
SECONDS = 30.0  # that the searches of a request may take
_IDLE = 60.0  # seconds after which a silent connection is closed
_LONGEST = _IDLE + SECONDS  # seconds without a reply after which any connection is closed


def answer(retriever: Retriever, request: Any) -> dict[str, Any]:
    """The reply to a request.

    Raises:
      ValueError: a request that is none, with the key and what is expected.
      TimeoutError: its searches take longer than SECONDS.
    """
    (queries, topk, scores), until = _checked(request), time.monotonic() + SECONDS
    result = []
    for query in queries:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(queries)} queries take over {SECONDS:g} s; send fewer")
        (hits,) = retriever.search([query[:LONGEST_QUERY]], topk)
        result.append([_item(hit, scores) for hit in hits])
    return {"result": result}


def _checked(request: Any) -> tuple[list[str], int, bool]:
    if not isinstance(request, dict) or ("queries" in request) == ("query" in request):
        raise ValueError('expected an object with either "queries" (a list) or "query" (a text)')
    queries = request["queries"] if "queries" in request else [request["query"]]
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise ValueError('"queries" is to be a list of texts, "query" one text')
    topk, scores = request.get("topk"), request.get("return_scores", False)
    topk = TOPK if topk is None else topk
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= MOST:
        raise ValueError(f'"topk" is to be a whole number from 1 to {MOST}, got {str(topk)[:80]!r}')
    if not isinstance(scores, bool):
        raise ValueError(f'"return_scores" is to be true or false, got {str(scores)[:80]!r}')
    if len(queries) * topk > MOST_RESULTS:
        raise ValueError(
            f"{len(queries)} queries with {topk} results each: at most {MOST_RESULTS} results"
        )
    return queries, topk, scores


def _item(hit: Hit, scores: bool) -> dict[str, Any]:
    document = {"id": hit.id, "contents": hit.contents}
    return {"document": document, "score": hit.score} if scores else document


class Server(ThreadingHTTPServer):
    """Answers in one thread per connection; `serve_forever` runs it, port 0 picks a free one."""

    daemon_threads = True
    request_queue_size = 1024  # a whole pod may knock at once

    def __init__(self, retriever: Retriever, *, host: str, port: int = 0, size: int = 0):
        self.retriever, self.size = retriever, size
        self._replied: dict[socket.socket, float] = {}  # when each connection got its last reply
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def replied(self, connection: socket.socket) -> None:
        """A connection has been opened or answered; its time begins anew."""
        with self._lock:
            self._replied[connection] = time.monotonic()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a connection its thread, if there are not too many."""
        with self._lock:
            full = len(self._replied) >= MOST_CONNECTIONS
        if full:
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        self.replied(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._replied.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends, now and then, connections that send or read too slowly to be waited for."""
        late = time.monotonic() - _LONGEST
        with self._lock:
            slow = [connection for connection, when in self._replied.items() if when < late]
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # its thread finds it closed, and ends

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints a traceback, unless a client merely hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  # the one that runs it
    protocol_version = "HTTP/1.1"  # connections stay open between requests
    timeout = _IDLE
    # One packet per reply: the header alone would wait for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/health":
            self._reply(200, {"status": "ok", "passages": self.server.size})
        else:
            self._reply(404, {"error": f"no {self.path[:80]} here; POST /retrieve or GET /health"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9 or int(length) > LARGEST_BODY:
            self.close_connection = True  # what follows cannot be told from a new request
            given = f"Content-Length {length[:80]!r}"
            self._reply(413, {"error": f"{given}: at most {LARGEST_BODY} bytes"})
            return
        body = self.rfile.read(int(length))
        if self.path.rstrip("/") != "/retrieve":
            self._reply(404, {"error": f"no {self.path[:80]} here; POST /retrieve or GET /health"})
            return
        try:
            reply = answer(self.server.retriever, json.loads(body))
        except RecursionError:
            self._reply(400, {"error": "the request is nested too deeply"})
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors, too
            self._reply(400, {"error": str(error)})
        except OSError as error:  # the search takes too long, or cannot be carried out
            self._reply(503, {"error": str(error)})
        else:
            self._reply(200, reply)

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        self.server.replied(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a run asks thousands of times a minute."""


def exposed(host: str) -> str:
    """What a host means that is not this machine alone; "" for one that is."""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return ""
    return (
        f"--host={host}: every machine that reaches this one can search the corpus and keep this "
        "server busy, without a password and unencrypted; use it on a closed network only"
    )


def main() -> None:
    """Command line: `--corpus` file, `--port`, `--host`."""
    parser = argparse.ArgumentParser(description="Serves a corpus for env.searchqa.retriever.")
    parser.add_argument("--corpus", required=True, help="a .jsonl or .jsonl.gz file of passages")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines ask too")
    options = parser.parse_args()
    with one_line_errors():
        serve(options.corpus, host=options.host, port=options.port)


def serve(corpus: str, *, host: str, port: int) -> None:
    """Serves a corpus file until Ctrl-C.

    Raises:
      ValueError, OSError: the corpus cannot be read (`retrieve.load`), or the port not be had.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port={port}: give a number from 0 (any free port) to 65535")
    index = retrieve.load(corpus)
    with Server(index, host=host, port=port, size=len(index.passages)) as server:
        print(f"{len(index.passages)} passages at http://{host}:{server.server_port}/retrieve")
        if warning := exposed(host):
            print(warning, file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
