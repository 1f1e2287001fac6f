"""Client and server: equal to the index in this process under load, patient with faults."""

import contextlib
import functools
import gzip
import itertools
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

from atod_jax.envs import searchqa
from atod_jax.envs.pool import EnvPool, Failure
from atod_jax.envs.searchqa import client, generate, server
from atod_jax.envs.searchqa.client import HttpRetriever
from atod_jax.envs.searchqa.engine import SearchEnv
from atod_jax.envs.searchqa.retrieve import Bm25, Passage, RetrieverError
from atod_jax.envs.searchqa.server import LARGEST_BODY, Server

INDEX = Bm25([Passage(str(n), f'"Title {n}"\nword{n} common é') for n in range(900)])


@contextlib.contextmanager
def running(served):
    """Serves in a thread; the port is `served.server_port`."""
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


@pytest.fixture(scope="module")
def url():
    with running(Server(INDEX, host="127.0.0.1", size=len(INDEX.passages))) as address:
        yield address


def ask(url, body, path="/retrieve", *, status_only=False):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = urllib3.request("POST", url + path, body=data, retries=False, timeout=10)
    return reply.status if status_only else (reply.status, reply.json())


def soon(url, status):
    """Whether a request is answered so, once the server has noticed what goes on."""
    for _ in range(100):
        if ask(url, {"query": "word7"}, status_only=True) == status:
            return True
        time.sleep(0.01)
    return False


def test_both_forms_of_a_request_with_and_without_scores(url):
    status, many = ask(url, {"queries": ["word7", "word8"], "topk": 1, "return_scores": True})
    assert status == 200
    (seven,), (eight,) = many["result"]
    assert seven["document"] == {"id": "7", "contents": '"Title 7"\nword7 common é'}
    assert seven["score"] == INDEX.search(["word7"], 1)[0][0].score > 0
    assert eight["document"]["id"] == "8"
    assert ask(url, {"query": "word7", "topk": 1, "return_scores": True})[1]["result"] == [[seven]]
    assert ask(url, {"query": "word7", "topk": 1})[1]["result"] == [[seven["document"]]]
    assert len(ask(url, {"query": "common"})[1]["result"][0]) == 3
    assert ask(url, {"queries": []}) == (200, {"result": []})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, 'either "queries"'),
        ({"queries": ["a"], "query": "a"}, 400, 'either "queries"'),
        ([], 400, "expected an object"),
        ({"queries": "a"}, 400, "list of texts"),
        ({"query": 5}, 400, "list of texts"),
        ({"query": "a", "topk": 0}, 400, '"topk"'),
        ({"query": "a", "topk": "3"}, 400, '"topk"'),
        ({"query": "a", "topk": True}, 400, '"topk"'),
        ({"query": "a", "return_scores": "yes"}, 400, '"return_scores"'),
        (b"{", 400, "Expecting"),
        (b'{"query": "\xff"}', 400, "utf-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"query": ' * 100_000, 400, "nested too deeply"),
        ({"query": "a", "topk": 10**400}, 400, '"topk"'),
        ({"queries": ["a"] * 201, "topk": 100}, 400, "201 queries with 100 results each"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(url, body, status, message):
    answer = ask(url, body)
    assert answer[0] == status
    assert message in answer[1]["error"]


def test_other_paths_and_too_large_bodies_are_refused(url):
    assert ask(url, {"query": "a"}, path="/search")[0] == 404
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        head = f"POST /retrieve HTTP/1.1\r\nContent-Length: {LARGEST_BODY + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(1000)
    with urllib.request.urlopen(f"{url}/health") as reply:
        assert json.load(reply) == {"status": "ok", "passages": 900}


def head_of(length):
    return f"POST /retrieve HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode()


def test_lengths_that_are_none_are_refused(url):
    for length in ("", "-1", "9" * 5000, "1e3", "\u00b2"):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(head_of(length))
            assert b" 413 " in connection.recv(1000)


def test_a_request_ends_in_time_and_connections_are_counted(monkeypatch):
    """Two connections at most, none of them waited for longer than a moment."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server, "_LONGEST", 2.0)
    with running(Server(INDEX, host="127.0.0.1")) as url, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        slow = [stack.enter_context(socket.create_connection(address)) for _ in range(2)]
        slow[0].sendall(head_of(100) + b"{")  # a body that never comes, a header that never ends
        slow[1].sendall(b"POST /retrieve HTTP/1.1\r\n")
        assert soon(url, 503)
        for connection in slow:
            connection.settimeout(5)
            while connection.recv(1000):
                pass
        monkeypatch.setattr(server, "_LONGEST", 60.0)
        assert soon(url, 200)
        monkeypatch.setattr(server, "SECONDS", -1.0)
        status, reply = ask(url, {"queries": ["word7"] * 3})
        assert (status, reply["error"]) == (503, "3 queries take over -1 s; send fewer")


def test_who_may_ask_is_said():
    assert [server.exposed(host) for host in ("127.0.0.1", "localhost", "::1")] == [""] * 3
    for host in ("0.0.0.0", "10.1.2.3", "::", "my-machine"):
        assert server.exposed(host).startswith(f"--host={host}: every machine that reaches this")


def test_a_client_that_hangs_up_is_no_trouble(url, capsys):
    body = json.dumps({"queries": ["common"] * 2000, "topk": 100}).encode()
    head = f"POST /retrieve HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for sent in (head + body, head + body[:9], head[:9]):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(sent)
    assert ask(url, {"query": "word7"})[0] == 200
    assert HttpRetriever(url).search(["common"] * 4000, 1)  # by now the others have failed
    assert capsys.readouterr().err == ""


def test_many_threads_get_their_own_answers(url):
    """16 threads, 50 distinct queries each: nothing dropped, nothing swapped."""
    retriever = HttpRetriever(url)
    queries = [[f"word{16 * n + thread} common" for n in range(50)] for thread in range(16)]

    def one_thread(asked):
        return [retriever.search([query], 3)[0] for query in asked]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one_thread, queries))
    assert found == [INDEX.search(asked, 3) for asked in queries]
    assert [hits[0].id for hits in found[3]] == [str(16 * n + 3) for n in range(50)]
    batch = retriever.search([q for asked in queries for q in asked], 3)
    assert batch == [hits for answers in found for hits in answers]


@contextlib.contextmanager
def scripted(replies, seen=None):
    """A server that gives (status, body) replies in turn, the last one for ever."""
    left = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if seen is not None:
                seen.append(json.loads(body))
            status, reply = left.pop(0) if len(left) > 1 else left[0]
            if status is None:  # hang up
                self.close_connection = True
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

        def log_message(self, *args):
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address


FINE = {"result": [[{"id": "4", "contents": "text"}]]}


@contextlib.contextmanager
def sending(*parts, start=b"HTTP/1.1 200 OK\r\n", end=b"\r\n", pause=0.0):
    """A server that sends a head and then these bytes for ever to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(2**16)
                        connection.sendall(start + parts[0] + end)
                        for part in itertools.cycle(parts[1:]):
                            connection.sendall(part)
                            time.sleep(pause)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def failing(url, match, **options):
    """Seconds until a search fails with such an error."""
    began = time.monotonic()
    with pytest.raises(RetrieverError, match=match):
        HttpRetriever(url, **options).search(["x"], 3)
    return time.monotonic() - began


CHUNKED, CONTINUE = b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ((b"Content-Length: 100000\r\n", b" "), {}),
        ((b"", b"X: y\r\n"), {"end": b""}),  # one header after another
        ((CHUNKED, b"1"), {}),
        ((CHUNKED, b"0\r\n", b"X: y\r\n"), {}),
        ((b"", b"H"), {"start": b"", "end": b""}),
        ((b"", CONTINUE * 100), {"start": b"", "end": b"", "pause": 0.0}),
    ],
    ids=["body", "headers", "size of a chunk", "trailers", "first line", "no end of heads"],
)
def test_an_answer_that_drips_is_given_up_in_time(parts, options):
    with sending(*parts, **{"pause": 0.05, **options}) as url:
        assert failing(url, "not whole after 0.5 s", timeout=10.0, deadline=0.5) < 2


def test_an_answer_without_an_end_is_bounded_packed_or_not(monkeypatch):
    monkeypatch.setattr(client, "LARGEST_ANSWER", 2**20)
    with sending(b"", b" " * 2**16) as url:
        failing(url, "answers more than 1048576 bytes")
    bomb = gzip.compress(bytes(2**26))  # 65 kB that become 64 MB
    head = f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n".encode()
    with sending(head, bomb) as url:
        failing(url, "answers more than 1048576 bytes")


def test_there_is_one_deadline_over_all_tries_and_an_outage_is_found_out_once():
    seen = []
    with scripted([(503, b"busy")], seen) as url:
        retriever = HttpRetriever(url, retries=1000, deadline=1.0)
        began = time.monotonic()
        with pytest.raises(RetrieverError, match=r"status 503 \(busy\)"):
            retriever.search(["x"], 3)
        assert 0.3 < time.monotonic() - began < 3
        asked = len(seen)
        assert 2 <= asked <= 5  # after 0, 0.1, 0.3 and 0.7 s
        with pytest.raises(RetrieverError, match=r"a moment ago \(status 503 \(busy\)\)"):
            retriever.search(["x"], 3)
        assert len(seen) == asked


def test_an_outage_is_a_failure_of_the_episode_and_no_observation():
    with scripted([(503, b"busy")]) as url:
        retriever = HttpRetriever(url, retries=0)
        options = {"win_reward": 1.0, "max_turns": 4, "topk": 3, "form": "json"}
        pool = EnvPool(functools.partial(SearchEnv, retriever, **options))
        pool.reset([searchqa.tasks(searchqa.Config(), "test")[0]])
        (result,) = pool.step([(0, "<search>x</search>")])
    assert isinstance(result, Failure)
    assert "status 503" in result.reason


def test_one_odd_refusal_does_not_change_how_lists_are_asked(monkeypatch):
    seen = []
    monkeypatch.setattr(client, "_REMEMBERED", 0.0)
    with scripted([(400, "odd"), (200, FINE)], seen) as url:
        retriever = HttpRetriever(url)
        for _ in range(3):
            assert len(retriever.search(["x"], 3)) == 1
    assert ["queries" in asked for asked in seen] == [True, False, True, True]


@pytest.mark.parametrize("fault", [(500, ""), (503, ""), (429, ""), (None, "")])
def test_passing_faults_are_waited_out(fault):
    seen = []
    with scripted([fault, fault, (200, FINE)], seen) as url:
        assert HttpRetriever(url).search(["x"], 3) == [[("4", "text", 0.0)]]
    assert seen == [{"queries": ["x"], "topk": 3, "return_scores": True}] * 3


def test_lasting_faults_end_in_an_error_after_bounded_retries():
    seen = []
    with scripted([(500, b"broken")], seen) as url:
        with pytest.raises(RetrieverError, match=r"/retrieve: status 500 \(broken\)"):
            HttpRetriever(url, retries=2).search(["x"], 3)
        assert len(seen) == 3


def test_a_server_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RetrieverError, match="no answer"):
            HttpRetriever(url, retries=1, timeout=0.1).search(["x"], 3)


@pytest.mark.parametrize(
    "reply",
    [
        b"not json",
        [],
        {},
        {"result": []},
        {"result": [[], []]},
        {"result": [[{"id": "1"}]]},
        {"result": [[{"document": {"contents": None}}]]},
        {"result": ["text"]},
        {"result": [[{"contents": "a", "score": "b"}]]},
        {"result": [[{"contents": "a", "score": 10**400}]]},
        b"[" * 100_000,
    ],
)
def test_an_answer_of_another_shape_is_an_error(reply):
    refused = pytest.raises(RetrieverError, match="not an answer of this protocol")
    with scripted([(200, reply)]) as url, refused:
        HttpRetriever(url).search(["x"], 3)


def test_more_passages_than_asked_for_are_cut():
    many = {"result": [[{"document": {"contents": str(n)}, "score": -n} for n in range(5)]]}
    with scripted([(200, many)]) as url:
        assert [h.contents for h in HttpRetriever(url).search(["x"], 2)[0]] == ["0", "1"]


def test_a_server_that_knows_single_queries_only_is_asked_one_by_one():
    seen = []
    with scripted([(422, {"detail": "query"}), (200, FINE)], seen) as url:
        retriever = HttpRetriever(url)
        assert len(retriever.search(["x", "y"], 3)) == 2
        assert len(retriever.search(["z"], 3)) == 1
    assert [request.get("query") for request in seen] == [None, "x", "y", "z"]


def test_a_request_that_is_refused_for_good_is_an_error():
    refused = pytest.raises(RetrieverError, match="status 422")
    with scripted([(422, {"detail": "no"})]) as url, refused:
        HttpRetriever(url).search(["x"], 3)


def test_a_server_that_is_starting_is_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    late = threading.Timer(0.5, lambda: opened.append(socket.create_server(address)))
    opened = []
    late.start()
    HttpRetriever(f"http://127.0.0.1:{address[1]}").reach()
    opened[0].close()


def test_an_unreachable_server_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(client, "_ARRIVAL", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/retrieve"
    with pytest.raises(ValueError, match=r"nothing answers there.*searchqa\.server --corpus"):
        searchqa.make(searchqa.Config(retriever=url))
    with pytest.raises(ValueError, match=r"env\.searchqa\.retriever='localhost:8000': give a URL"):
        searchqa.make(searchqa.Config(retriever="localhost:8000"))
    assert client.endpoint("http://host:1/") == "http://host:1/retrieve"
    assert client.endpoint("http://host:1/v2/find") == "http://host:1/v2/find"


def test_episodes_play_alike_over_http():
    with running(Server(generate.index(0), host="127.0.0.1")) as url:
        local, remote = searchqa.Config(), searchqa.Config(retriever=url)
        task = next(t for t in searchqa.tasks(local, "test") if t.kind == "two-hop")
        commands = searchqa.demonstration(local, task, 4)
        played = [
            [env.step(c) for c in commands]
            for env in map(searchqa.make, (local, remote))
            if env.reset(task)
        ]
    assert len(commands) == 3
    assert played[0] == played[1]


def test_the_command_line_serves_a_file(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "1", "title": "One", "text": "lonely passage"}) + "\n")
    command = [sys.executable, "-u", "-m", "atod_jax.envs.searchqa.server"]
    with subprocess.Popen(
        [*command, f"--corpus={corpus}", "--port=0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().split()[-1]
            assert url.startswith("http://127.0.0.1:")  # nobody else is let in unasked
            assert HttpRetriever(url).search(["lonely"], 3)[0][0].id == "1"
        finally:
            process.terminate()
