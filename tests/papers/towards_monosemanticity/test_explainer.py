import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from made_up_analysis import make

from papers.towards_monosemanticity.explainer import (
    DEMONSTRATIONS,
    Endpoint,
    _window,
    ask,
    endpoint,
    explain_messages,
    predict_messages,
    read_explanation,
    read_levels,
    study,
)
from shared.errors import UserError

MESSAGES = [{"role": "user", "content": "hello"}]
KEY = "a-key-that-nobody-should-see"


def said(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


@contextmanager
def server(*answers, reply=None):
    """A server that gives these answers in turn, or what `reply` makes of a request's body."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            code, content = reply(body) if reply else answers[min(len(seen), len(answers)) - 1]
            self.send_response(code)
            if code == 302:
                self.send_header("Location", content)
            self.end_headers()
            if code != 302:
                text = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.wfile.write(text)

        def log_message(self, *_):
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", seen
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def at(url, **options):
    return Endpoint(url, "some-model", KEY, **{"timeout": 5.0, "wait": 0.001, **options})


def test_an_answer_is_asked_for_once_and_kept_without_the_key(tmp_path):
    with server(said("an answer")) as (url, seen):
        assert ask(at(url), MESSAGES, tmp_path) == "an answer"
        assert ask(at(url), MESSAGES, tmp_path) == "an answer"
        assert ask(at(url), [*MESSAGES, *MESSAGES], tmp_path) == "an answer"
    assert len(seen) == 2
    path, authorization, body = seen[0]
    assert path == "/v1/chat/completions"
    assert authorization == f"Bearer {KEY}"
    assert body == {"model": "some-model", "messages": MESSAGES}
    stored = "".join(file.read_text() for file in tmp_path.iterdir())
    assert KEY not in stored
    assert not list(tmp_path.glob(".partial-*"))


def test_a_failing_server_is_asked_again(tmp_path):
    with server((500, {}), (429, {}), said("at last")) as (url, seen):
        assert ask(at(url), MESSAGES, tmp_path) == "at last"
    assert len(seen) == 3


def test_a_server_that_keeps_failing_is_given_up(tmp_path):
    with server((500, {})) as (url, seen), pytest.raises(UserError, match="500") as error:
        ask(at(url, attempts=3), MESSAGES, tmp_path)
    assert len(seen) == 3
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_refusal_is_not_asked_again(tmp_path):
    with server((401, {})) as (url, seen), pytest.raises(UserError, match="401") as error:
        ask(at(url), MESSAGES, tmp_path)
    assert len(seen) == 1
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        {"choices": []},
        {"error": "x"},
        [1],
        {"choices": [{"message": {"content": None}}]},
    ],
)
def test_an_answer_of_another_protocol_is_named_and_not_kept(tmp_path, answer):
    with server((200, answer)) as (url, _), pytest.raises(UserError, match="chat format"):
        ask(at(url), MESSAGES, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_timeout_is_one_line(tmp_path):
    release = threading.Event()

    def slow(_):
        release.wait(5)
        return said("too late")

    with server(reply=slow) as (url, _):
        with pytest.raises(UserError, match="timed out"):
            ask(at(url, timeout=0.05, attempts=1), MESSAGES, tmp_path)
        release.set()


def test_an_unreachable_endpoint_is_one_line(tmp_path):
    with server() as (url, _):
        pass  # closed again: nothing listens there
    with pytest.raises(UserError, match="gives no answer") as error:
        ask(at(url, attempts=2), MESSAGES, tmp_path)
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)


def test_the_key_does_not_follow_a_redirect(tmp_path):
    with (
        server(said("stolen")) as (elsewhere, seen),
        server((302, elsewhere)) as (url, _),
        pytest.raises(UserError, match="302"),
    ):
        ask(at(url), MESSAGES, tmp_path)
    assert seen == []


def test_the_key_is_not_shown():
    assert KEY not in repr(at("http://x"))


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "localhost:8080", "OPENAI_MODEL": "m"}, "OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "file:///etc", "OPENAI_MODEL": "m"}, "OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "http://localhost/v1"}, "OPENAI_MODEL"),
    ],
)
def test_a_missing_variable_is_named(environment, name):
    with pytest.raises(UserError, match=name):
        endpoint(environment)


def test_a_local_server_needs_no_key():
    found = endpoint({"OPENAI_BASE_URL": "http://localhost/v1/", "OPENAI_MODEL": "m"})
    assert (found.url, found.model, found.key) == ("http://localhost/v1", "m", "")


def test_there_are_eight_demonstrations_of_windows_of_nine():
    assert len(DEMONSTRATIONS) == 8
    for _, _, *marked in DEMONSTRATIONS:
        for text in marked:
            window = _window(text)
            assert len(window) == 9
            assert max(level for _, level in window) <= 9
    assert _window("␣born ␣1924/9") == [("␣born", 0), ("␣1924", 9)]


def test_the_prediction_is_asked_for_without_the_activations():
    messages = predict_messages("digits", [["␣a"] * 9])
    assert len(messages) == 2 + 2 * len(DEMONSTRATIONS)
    last = messages[-1]["content"]
    assert "digits" in last
    assert json.loads(last.splitlines()[1]) == [["␣a"] * 9]


def test_the_explanation_is_asked_for_with_them():
    window = [("␣a", 3)] * 9
    messages = explain_messages([("top", window)], ["␣b"], ["␣c"])
    origin, _, shown = messages[-1]["content"].splitlines()[0].partition(": ")
    assert (origin, json.loads(shown)) == ("top", [["␣a", 3]] * 9)
    assert '["␣b"]' in messages[-1]["content"]


def test_explanations_stand_in_tags_or_are_all_of_the_answer():
    assert read_explanation("so <answer>digits\n</answer> done") == "digits"
    assert read_explanation(" no tags ") == "no tags"


def test_levels_are_read_or_refused():
    good = json.dumps([[1] * 9, [0] * 9])
    np.testing.assert_array_equal(read_levels(f"Here: {good}.", 2), [[1] * 9, [0] * 9])
    for bad in (
        "", "none", good[:-3], json.dumps([[1] * 9]), json.dumps([[1] * 8, [0] * 8]),
        json.dumps([[10] * 9, [0] * 9]), json.dumps([[-1] * 9, [0] * 9]),
        json.dumps([[0.5] * 9, [0] * 9]), json.dumps([["1"] * 9, [0] * 9]),
        json.dumps([[1] * 9, [0] * 3]),
    ):  # fmt: skip
        assert read_levels(bad, 2) is None


def rater(body):
    """Explains by the strongest token; predicts 9 there. Fails to answer about one explanation."""
    content = body["messages"][-1]["content"]
    if content.startswith("explanation: "):
        words, tokens = content.removeprefix("explanation: ").split("\n")
        levels = [[9 * (token == words) for token in row] for row in json.loads(tokens)]
        return said(json.dumps(levels))
    top = json.loads(content.splitlines()[0].removeprefix("top: "))
    return said(f"<answer>{max(top, key=lambda pair: pair[1])[0]}</answer>")


def test_a_study_of_features_and_neurons(tmp_path, monkeypatch):
    folder = make(tmp_path / "analysis", monkeypatch)
    with server(reply=rater) as (url, seen):
        first = study(at(url), folder, tmp_path / "cache", "a1", units=4, firing=20, seed=0)
        asked = len(seen)
        again = study(at(url), folder, tmp_path / "cache", "a1", units=4, firing=20, seed=0)
        assert len(seen) == asked == 16  # an explanation and a prediction each, then none
    assert first == again
    assert first["features"]["median"] > 0.7
    assert first["neurons"]["median"] < first["features"]["median"]
    assert first["features"]["unreadable"] == 0
    assert [len(first[group]["units"]) for group in ("features", "neurons")] == [4, 4]
    assert KEY not in json.dumps(first)


def test_an_unreadable_prediction_is_counted(tmp_path, monkeypatch):
    folder = make(tmp_path / "analysis", monkeypatch)
    with server(said("I would rather not")) as (url, _):
        result = study(at(url), folder, tmp_path / "cache", "a1", units=2, firing=20, seed=0)
    assert result["features"]["median"] is None
    assert result["features"]["unreadable"] == 2
