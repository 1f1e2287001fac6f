"""Serves a corpus to the processes of a run, in the Search-R1 protocol (see `client.py`).

    python -m atod_jax.envs.searchqa.server --corpus=corpus.jsonl.gz --port=8000

Only this machine can ask, unless `--host=0.0.0.0` opens it to every machine of a pod.

POST /retrieve takes {"queries": [...]} or {"query": "..."}, with "topk" (default 3) and
"return_scores" (default false: the documents themselves); GET /health says how much is served.
"""

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from atod_jax.envs.searchqa import retrieve
from atod_jax.envs.searchqa.retrieve import Hit, Retriever

TOPK, MOST = 3, 100
LARGEST_BODY = 2**24  # bytes
_IDLE = 60.0  # seconds after which a silent connection is closed


def answer(retriever: Retriever, request: Any) -> dict[str, Any]:
    """The reply to a request.

    Raises:
      ValueError: a request that is none, with the key and what is expected.
    """
    queries, topk, scores = _checked(request)
    found = retriever.search(queries, topk)
    return {"result": [[_item(hit, scores) for hit in hits] for hits in found]}


def _checked(request: Any) -> tuple[list[str], int, bool]:
    if not isinstance(request, dict) or ("queries" in request) == ("query" in request):
        raise ValueError('expected an object with either "queries" (a list) or "query" (a text)')
    queries = request["queries"] if "queries" in request else [request["query"]]
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise ValueError('"queries" is to be a list of texts, "query" one text')
    topk, scores = request.get("topk"), request.get("return_scores", False)
    topk = TOPK if topk is None else topk
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= MOST:
        raise ValueError(f'"topk" is to be a whole number from 1 to {MOST}, got {topk!r}')
    if not isinstance(scores, bool):
        raise ValueError(f'"return_scores" is to be true or false, got {scores!r}')
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
        super().__init__((host, port), _Handler)

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
            self._reply(404, {"error": f"no {self.path} here; POST /retrieve or GET /health"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True  # what follows cannot be told from a new request
            self._reply(413, {"error": f"Content-Length {length!r}: at most {LARGEST_BODY} bytes"})
            return
        body = self.rfile.read(int(length))
        if self.path.rstrip("/") != "/retrieve":
            self._reply(404, {"error": f"no {self.path} here; POST /retrieve or GET /health"})
            return
        try:
            reply = answer(self.server.retriever, json.loads(body))
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors, too
            self._reply(400, {"error": str(error)})
        else:
            self._reply(200, reply)

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a run asks thousands of times a minute."""


def main() -> None:
    """Command line: `--corpus` file, `--port`, `--host`."""
    parser = argparse.ArgumentParser(description="Serves a corpus for env.searchqa.retriever.")
    parser.add_argument("--corpus", required=True, help="a .jsonl or .jsonl.gz file of passages")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines ask too")
    options = parser.parse_args()
    index = retrieve.load(options.corpus)
    with Server(index, host=options.host, port=options.port, size=len(index.passages)) as server:
        print(
            f"{len(index.passages)} passages at http://{options.host}:{server.server_port}/retrieve"
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
