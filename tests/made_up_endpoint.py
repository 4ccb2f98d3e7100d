"""A made-up language model behind OpenAI's chat protocol, on this machine."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from shared.features.endpoint import Endpoint

KEY = "a-key-that-nobody-should-see"


def said(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def at(url, **options):
    return Endpoint(url, "some-model", KEY, **{"timeout": 5.0, "wait": 0.001, **options})


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
