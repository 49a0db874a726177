"""A partner's server that is called back: it keeps what came and answers as told."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Receiver:
    def __init__(self, url):
        self.url = url
        self.requests = []
        self.statuses = []
        """Answered first, in this order; then 200."""
        self.cors = {}
        """Headers of every answer."""

    def bodies(self):
        return [request["json"] for request in self.requests]


@contextmanager
def receiving():
    class Handler(BaseHTTPRequestHandler):
        def do(self):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            receiver.requests.append(
                {
                    "method": self.command,
                    "path": urlsplit(self.path).path,
                    "query": parse_qs(urlsplit(self.path).query),
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "json": json.loads(body) if body else None,
                    "peer": self.client_address[0],
                }
            )
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            for name, value in receiver.cors.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = do_OPTIONS = do  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/callbacks/toss/login-unlink")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
