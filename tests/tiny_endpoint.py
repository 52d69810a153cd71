"""A local OpenAI-compatible endpoint that answers as a test tells it."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pbrl_jax import EndpointConfig


class TinyEndpoint:
    """`reply(body) -> text, (status, text), or (status, headers, blocks of bytes)`, with status 0 only
    the blocks, or a dict, which is the answer; `seen` holds (path, headers, body) of every request."""

    def __init__(self, reply):
        self.reply, self.seen = reply, []

    @contextlib.contextmanager
    def served(self):
        """The settings of a client, while the server runs."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, dict(self.headers), body))
                found = outer.reply(body)
                with contextlib.suppress(OSError):  # a client that did not wait
                    self.send(*(found if isinstance(found, tuple) else (200, found)))

            def send(self, status, text, blocks=None):
                headers = text
                if blocks is None:
                    answer = {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 10}}
                    answer = text if isinstance(text, dict) else answer
                    blocks = [json.dumps(answer).encode() if status == 200 else text.encode()]
                    headers = {"Content-Length": str(len(blocks[0]))}
                if status:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                for block in blocks:
                    self.wfile.write(block)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield EndpointConfig(url=f"http://127.0.0.1:{server.server_port}/v1", model="tiny", timeout=5.0)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
