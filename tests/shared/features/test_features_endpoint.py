"""Asking a language model, here one behind a server of the test's own."""

import threading

import pytest
from made_up_endpoint import KEY, at, said, server

from shared.errors import UserError
from shared.features.endpoint import ask, endpoint, read_explanation

MESSAGES = [{"role": "user", "content": "hello"}]


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


def test_explanations_stand_in_tags_or_are_all_of_the_answer():
    assert read_explanation("so <answer>digits\n</answer> done") == "digits"
    assert read_explanation(" no tags ") == "no tags"
