"""A proxy that hands each request to another node in turn: in_turn.py PORT HOST:PORT..."""

import http.client
import itertools
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

nodes = itertools.cycle(sys.argv[2:])
lock = threading.Lock()


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def pass_on(self):
        with lock:
            node = next(nodes)
        body = self.body()
        hop = ("connection", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        if body or self.command in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(body))
        far = http.client.HTTPConnection(node, timeout=60)
        far.request(self.command, self.path, body=body or None, headers=headers)
        answer = far.getresponse()
        payload = answer.read()
        self.send_response_only(answer.status, answer.reason)
        length = None
        for name, value in answer.getheaders():
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in hop:
                self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", length)
        elif answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
        far.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Proxy).serve_forever()
