import http.client
import socket
import struct
import threading

import pytest

from t2eval.errors import UsageError
from t2eval.leaderboard.page.serve import Pages, make_server, serve
from tests.leaderboard.page.runs import put


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    server = make_server(Pages(folder), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield folder, server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def ask(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read().decode()


def test_a_run_is_shown_while_it_runs(served):
    folder, port = served
    answer, text = ask(port)
    assert answer.status == 200 and "Waiting for rows" in text and 'http-equiv="refresh"' in text
    put(folder, "base", "sums")
    answer, text = ask(port)
    tag = answer.headers["ETag"]
    assert "data-summary" in text and "connect-src &" not in text and "connect-src 'self'" in text
    assert f'"{ask(port, "/tag")[1]}"' == tag
    again, empty = ask(port, If_None_Match=tag)
    assert again.status == 304 and empty == ""
    put(folder, "cls", "sums")
    newer, _ = ask(port, If_None_Match=tag)
    assert newer.status == 200 and newer.headers["ETag"] != tag
    head, nothing = ask(port, method="HEAD")
    assert head.status == 200 and nothing == "" and int(head.headers["Content-Length"]) > 10_000


def test_a_browser_that_goes_away_is_not_worth_a_word(served, capfd):
    folder, port = served
    put(folder, "base", "sums", n=2000)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, and no goodbye
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(10)
    assert ask(port, "/tag")[0].status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_only_this_machine_is_answered(served):
    folder, port = served
    put(folder, "base", "sums")
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", ""):
        answer, text = ask(port, Host=host)
        assert answer.status == 403 and "data-summary" not in text, host
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]:80"):
        assert ask(port, "/tag", Host=host)[0].status == 200, host
    assert ask(port, "/rows.jsonl")[0].status == 404 and ask(port, "/../rows.jsonl")[0].status == 404
    answer, _ = ask(port, "/tag")
    assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert ask(port, method="POST")[0].status == 501


def test_what_cannot_be_served_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        serve(tmp_path / "nowhere")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="Give another --port"):
            make_server(Pages(tmp_path), taken.getsockname()[1])


def test_a_browser_sees_new_rows_by_itself(served, visit):
    folder, port = served
    put(folder, "base", "sums")
    page = visit(f"http://127.0.0.1:{port}/", allowed=f"http://127.0.0.1:{port}/tag")
    assert page.locator("tr[data-method]").count() == 1
    put(folder, "cls", "sums")
    page.wait_for_selector("tr[data-method=cls]", timeout=20_000)
