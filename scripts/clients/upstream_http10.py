"""An upstream for scripts/check-clients on Python's http.server, which answers in HTTP/1.0.

    python3 upstream_http10.py PORT DIRECTORY

Files come with their length; /delimited has none and ends with the connection; POST and PUT of /echo give the body
back. It must not know that a gateway stands in front of it.
"""

import functools
import http.server
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/delimited":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        with open(self.directory + "/text", "rb") as file:
            while piece := file.read(3001):
                self.wfile.write(piece)

    def do_POST(self):
        left = int(self.headers["Content-Length"])
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(left))
        self.end_headers()
        while left > 0:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                break
            self.wfile.write(piece)
            left -= len(piece)

    do_PUT = do_POST

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


Server(("127.0.0.1", int(sys.argv[1])), functools.partial(Handler, directory=sys.argv[2])).serve_forever()
