"""Small fake stores on this machine that speak as S3, Google and Azure do, and can misbehave.

Who calls it: tests of what the client of a store does, of which a real one shows only a part:
other dialects, and failures at a chosen moment.
"""

from __future__ import annotations

import http.server
import itertools
import json
import re
import threading
from collections import Counter
from urllib.parse import parse_qs, unquote

CONDITIONS = ("if-match", "if-none-match", "x-goog-if-generation-match")


class Cloud:
    """A store that keeps objects in memory, and tells which requests it got.

    Attributes
    ----------
    objects
        Content and version, by path.
    asked
        How often each kind of request came; parts are ``"part"``.
    refuse
        Called with kind and path of each request; what it returns, if anything, is the status
        that the request is answered with instead.
    """

    def __init__(self) -> None:
        self.objects = {}
        self.blocks = {}
        self.asked = Counter()
        self.conditions = set()
        self.refuse = lambda kind, path: None
        self.lock = threading.Lock()
        self.versions = itertools.count(1)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that has had enough
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def remote(self, dialect):
        """Return address and options of this store for a cache."""
        client = {"client_options": {"allow_http": True}}
        if dialect == "gs":
            account = {"gcs_base_url": self.url, "disable_oauth": True, "client_email": ""}
            account |= {"private_key": "", "private_key_id": ""}
            return "gs://b/p", {"service_account_key": json.dumps(account), **client}
        if dialect == "az":
            return "az://b/p", {
                "account_name": "acc",
                "endpoint": self.url,
                "skip_signature": True,
                **client,
            }
        return "s3://b/p", {
            "endpoint": self.url,
            "access_key_id": "x",
            "secret_access_key": "x",
            "region": "x",
            **client,
        }

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(cloud):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def say(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def begin(self, kind):
            """Read a request; return path, query and body, or nothing if it is refused."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            path = unquote(path)
            query = parse_qs(query, keep_blank_values=True)
            if "partNumber" in query or query.get("comp") == ["block"]:
                kind = "part"
            with cloud.lock:
                cloud.asked[kind] += 1
                status = cloud.refuse(kind, path)
            if status is not None:
                self.say(status)
                return None
            return path, query, body

        def do_GET(self):
            asked = self.begin("get")
            if asked is None:
                return
            path, query, _ = asked
            if query.get("comp") == ["list"]:
                empty = b"<EnumerationResults><Blobs></Blobs><NextMarker/></EnumerationResults>"
                self.say(200, empty)
            elif "list-type" in query:
                self.say(200, self.listing(path, query))
            elif path not in cloud.objects:
                self.say(404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                content, version = cloud.objects[path]
                self.say(200, content, **self.names(version))

        def do_HEAD(self):
            asked = self.begin("head")
            if asked is None:
                return
            content, version = cloud.objects.get(asked[0], (b"", 0))
            self.send_response(200 if version else 404)
            for name, value in self.names(version).items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def listing(self, path, query):
            start = path.rstrip("/") + "/" + query.get("prefix", [""])[0]
            with cloud.lock:
                found = sorted(name for name in cloud.objects if name.startswith(start))
            contents = "".join(
                f"<Contents><Key>{name[len(path.rstrip('/')) + 1 :]}</Key>"
                "<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>x</ETag><Size>{len(cloud.objects[name][0])}</Size></Contents>"
                for name in found
            )
            return f"<ListBucketResult>{contents}</ListBucketResult>".encode()

        def names(self, version):
            return {
                "ETag": f'"e{version}"',
                "x_goog_generation": str(version),
                "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
            }

        def do_PUT(self):
            asked = self.begin("put")
            if asked is None:
                return
            path, query, body = asked
            with cloud.lock:
                if "partNumber" in query or query.get("comp") == ["block"]:
                    number = query.get("partNumber") or query["blockid"]
                    cloud.blocks[path, number[0]] = body
                    status, version = 200 if "partNumber" in query else 201, 0
                else:
                    if query.get("comp") == ["blocklist"]:
                        names = re.findall(r"<(?:Latest|Uncommitted)>(.*?)<", body.decode())
                        body = b"".join(cloud.blocks[path, name] for name in names)
                    status, version = self.store(path, body)
            self.say(status, **self.names(version))

        def store(self, path, body):
            there = cloud.objects.get(path)
            generation, none, match = (self.headers.get(name) for name in reversed(CONDITIONS))
            cloud.conditions |= {name for name in CONDITIONS if name in self.headers}
            if generation is not None and int(generation) != (there[1] if there else 0):
                return 412, 0
            if none == "*" and there:
                return 409, 0
            if match and (not there or match != f'"e{there[1]}"'):
                return 412, 0
            version = next(cloud.versions)
            cloud.objects[path] = body, version
            return 201, version

        def do_DELETE(self):
            asked = self.begin("delete")
            if asked is not None:
                with cloud.lock:
                    there = cloud.objects.pop(asked[0], None)
                self.say(204 if there else 404)

        def do_POST(self):
            asked = self.begin("post")
            if asked is None:
                return
            path, query, body = asked
            if "uploads" in query:
                about = "InitiateMultipartUploadResult"
                self.say(200, f"<{about}><UploadId>1</UploadId></{about}>".encode())
            elif query.get("comp") == ["batch"]:
                self.batch(body)
            elif "delete" in query:
                names = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for name in names:
                    cloud.objects.pop(f"{path.rstrip('/')}/{name}", None)
                told = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
                self.say(200, f"<DeleteResult>{told}</DeleteResult>".encode())
            else:
                with cloud.lock:
                    parts = sorted(
                        (int(number), part)
                        for (name, number), part in cloud.blocks.items()
                        if name == path
                    )
                    version = next(cloud.versions)
                    cloud.objects[path] = b"".join(part for _, part in parts), version
                about = "CompleteMultipartUploadResult"
                told = f'<{about}><ETag>"e{version}"</ETag></{about}>'
                self.say(200, told.encode(), **self.names(version))

        def batch(self, body):
            """Answer a request of Azure for several removals."""
            told = b""
            for number, name in enumerate(re.findall(rb"DELETE (\S+) HTTP/1.1", body)):
                path = unquote(name.decode().split("?")[0])
                with cloud.lock:
                    there = cloud.objects.pop(path, None)
                status = b"202 Accepted" if there else b"404 The specified blob does not exist"
                told += (
                    b"--batchresponse_1\r\nContent-Type: application/http\r\n"
                    b"Content-ID: %d\r\n\r\nHTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n\r\n"
                ) % (number, status)
            kind = "multipart/mixed; boundary=batchresponse_1"
            self.say(202, told + b"--batchresponse_1--\r\n", Content_Type=kind)

    return Handler
