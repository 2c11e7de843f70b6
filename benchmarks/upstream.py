"""The upstream for small answers: nginx where it is installed, else a bundled server on asyncio.

Serves `ANSWERS` with the header fields a large API sends, and at `/whoami` the Authorization field it received. Run as
a program (`python -m benchmarks.upstream PORT`) it is the bundled server, with nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from email.utils import formatdate
from pathlib import Path

from benchmarks.processes import Process, Processes, free_port


def _answer(size: int) -> bytes:
    item = {"id": 1296269, "name": "Hello-World", "private": False, "owner": {"login": "alice", "type": "User"}}
    text = json.dumps([item] * (size // len(json.dumps(item)) + 1))
    return text[: size - 2].encode() + b'"]'


ANSWERS = {"/json": _answer(1024), "/64k": _answer(64 * 1024), "/post": _answer(1024)}

# The fields of an upstream's answer that reach the client, Date and Server aside.
END_TO_END_HEADERS = [
    (b"content-type", b"application/json"),
    (b"last-modified", b"Sat, 01 Nov 2025 12:00:00 GMT"),
    (b"etag", b'"6905f940-400"'),
    (b"accept-ranges", b"bytes"),
    (b"cache-control", b"private, max-age=60, s-maxage=60"),
    (b"vary", b"Accept, Authorization, Cookie, Accept-Encoding"),
    (b"x-ratelimit-limit", b"5000"),
    (b"x-ratelimit-remaining", b"4987"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-request-id", b"C2F2:1DD8:2A3B4C:5D6E7F:6905F940"),
]
_FROM_FILE = {b"content-type", b"last-modified", b"etag", b"accept-ranges"}


def start(processes: Processes, directory: Path) -> tuple[Process, str]:
    """Start it; the process, and its name for the report."""
    port = free_port()
    if shutil.which("nginx"):
        config = _nginx_config(directory, port)
        command = ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(config)]
        name = "nginx"
    else:
        command = [sys.executable, "-m", "benchmarks.upstream", str(port)]
        name = "bundled (asyncio)"
    process = processes.start("upstream", command, port=port, cwd=Path(__file__).parents[1])
    process.wait_ready()
    return process, name


def _nginx_config(directory: Path, port: int) -> Path:
    files = directory / "files"
    files.mkdir(parents=True, exist_ok=True)
    # Its workers may run as another user.
    for parent in (files, directory):
        parent.chmod(0o755)
    for path, body in ANSWERS.items():
        (files / path[1:]).write_bytes(body)
    added = "\n".join(
        f"    add_header {name.decode()} '{value.decode()}';"
        for name, value in END_TO_END_HEADERS
        if name not in _FROM_FILE
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  default_type application/json;
  sendfile on;
  open_file_cache max=10 inactive=1h;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  upstream reader {{ server unix:{directory}/reader.sock; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {files};
{added}
    # A file alone would answer before the body has arrived; this way the body is read first.
    location = /post {{
      proxy_pass http://reader;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_method GET;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
    location = /whoami {{ default_type text/plain; return 200 "$http_authorization"; }}
  }}
  server {{
    listen unix:{directory}/reader.sock backlog=4096;
    root {files};
  }}
}}
""")
    return config


class _Bundled(asyncio.Protocol):
    """Enough of HTTP/1.1 for a proxy that frames its requests properly."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, body = self._buffer[:end].decode("latin-1"), self._buffer[end + 4 :]
            lines = head.split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if "chunked" in fields.get("transfer-encoding", ""):
                last = body.find(b"0\r\n\r\n")
                if last < 0:
                    return
                rest = body[last + 5 :]
            else:
                length = int(fields.get("content-length", 0))
                if len(body) < length:
                    return
                rest = body[length:]
            self._buffer = rest
            self._transport.write(self._respond(lines[0].split(" ")[1].partition("?")[0], fields))

    @staticmethod
    def _respond(path: str, fields: dict[str, str]) -> bytes:
        body = fields.get("authorization", "").encode() if path == "/whoami" else ANSWERS.get(path)
        status = b"200 OK" if body is not None else b"404 Not Found"
        body = body or b""
        own = [
            (b"server", b"bundled"),
            (b"date", formatdate(usegmt=True).encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        lines = [name + b": " + value for name, value in (*own, *END_TO_END_HEADERS)]
        return b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Bundled, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
