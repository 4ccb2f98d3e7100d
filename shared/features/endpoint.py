"""Asking a language model of one's own choice, over OpenAI's chat protocol.

Any endpoint that speaks it will do, local ones included; it is named by the environment:
OPENAI_BASE_URL (http://localhost:8080/v1), OPENAI_MODEL, and where a key is needed OPENAI_API_KEY.
The key is sent to that address and nowhere else, and is never written. Answers are kept on disk by
the hash of the question: what is stopped goes on where it was, and nothing costs twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import read_json, write_json

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    """Seconds until an answer must have begun."""
    attempts: int = 5
    wait: float = 2.0
    """Seconds before the second attempt; twice as long before each further one."""


def endpoint(environment: Mapping[str, str]) -> Endpoint:
    """Read OPENAI_BASE_URL, OPENAI_MODEL and, where a key is needed, OPENAI_API_KEY.

    Raises UserError naming a variable that is missing or malformed.
    """
    url, model = (environment.get(name, "") for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"))
    if not re.match(r"https?://[^/\s]", url):
        raise UserError("set OPENAI_BASE_URL to the endpoint, such as http://localhost:8080/v1")
    if not model:
        raise UserError("set OPENAI_MODEL to the name of a model of the endpoint")
    return Endpoint(url.rstrip("/"), model, environment.get("OPENAI_API_KEY", ""))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keeps the key from following to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


_opener = urllib.request.build_opener(_NoRedirects)


def ask(where: Endpoint, messages: Messages, cache: Path) -> str:
    """Return the model's answer, from the cache if the same was asked before.

    Tries again after a busy or failing server and after a timeout.

    Raises:
        UserError: the endpoint cannot be reached, refuses, or does not speak the protocol.
    """
    question = {"model": where.model, "messages": messages}
    body = json.dumps(question, sort_keys=True).encode()
    path = cache / f"{hashlib.sha256(body).hexdigest()}.json"
    if path.exists():
        return str(read_json(path)["answer"])
    answer = _text(where, _post(where, body))
    write_json(path, {**question, "answer": answer})
    return answer


def _post(where: Endpoint, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    if where.key:
        headers["Authorization"] = f"Bearer {where.key}"
    request = urllib.request.Request(f"{where.url}/chat/completions", body, headers)
    reason = ""
    for attempt in range(where.attempts):
        if attempt:
            time.sleep(where.wait * 2 ** (attempt - 1))
        try:
            with _opener.open(request, timeout=where.timeout) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            reason = f"it answers {error.code} {error.reason}"
            error.close()
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                break
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise UserError(f"{where.url} gives no answer ({reason}): see OPENAI_BASE_URL and the key")


def _text(where: Endpoint, response: bytes) -> str:
    """Return the text of a response of the protocol."""
    try:
        text = json.loads(response)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f"{where.url} does not answer in OpenAI's chat format: see OPENAI_BASE_URL")
    return text


def read_explanation(answer: str) -> str:
    """Return what stands in the answer's tags, or all of it where it has none."""
    found = re.findall(r"<answer>(.*?)</answer>", answer, re.DOTALL)
    return (found[-1] if found else answer).strip()
