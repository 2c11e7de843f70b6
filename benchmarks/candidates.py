"""Who is measured, and how each is configured: the best way its own documentation describes.

Each gets the same requests, sends them to the same upstream, and puts the provider token in where it has a documented
way to. Knows nothing of loads or figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_CONNECTIONS = 256
PROVIDER_TOKEN = "provider-token-that-no-caller-sees-0123456789"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a candidate runs: its port, the upstream's, the interpreter that has the peers, a directory of its own."""

    port: int
    upstream_port: int
    python: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One proxy to measure.

    Args:
        name: for `--only` and for file names.
        label: what tables say.
        command: the command line that starts it.
        needs: what has to be installed, as `python:NAME`, `node:NAME` or `program:NAME`; its versions are printed.
        prefix: path under which it serves the upstream.
        quick: measured by `--quick` too.
        floor: answers by itself; everything else is compared with it.
        injects: puts the provider token in; False only where the peer has no way to.
        note: what a reader has to know to compare fairly.
    """

    name: str
    label: str
    command: Callable[[Place], list[str]]
    needs: Sequence[str]
    prefix: str = ""
    quick: bool = False
    floor: bool = False
    injects: bool = True
    note: str = ""


def _uvicorn(app: str, http: str = "httptools") -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        options = ["--loop", "uvloop", "--http", http, "--no-access-log", "--log-level", "warning"]
        address = ["--host", "127.0.0.1", "--port", str(place.port)]
        return [place.python, "-m", "uvicorn", f"benchmarks.apps:{app}", "--factory", *address, *options]

    return command


def _serve(place: Place) -> list[str]:
    config = Path(__file__).parent / "idp.toml"
    return [place.python, "-m", "idp_middleware", "serve", str(config), "--port", str(place.port)]


def _granian(app: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        options = ["--interface", "asgi", "--loop", "uvloop", "--http", "1", "--no-ws", "--log-level", "warning"]
        address = ["--host", "127.0.0.1", "--port", str(place.port)]
        return [place.python, "-m", "granian", f"benchmarks.apps:{app}", "--factory", *address, *options]

    return command


def _node(script: str) -> Callable[[Place], list[str]]:
    return lambda _: ["node", str(Path(__file__).parent / "node" / script)]


def _nginx(place: Place) -> list[str]:
    config = place.directory / "nginx.conf"
    config.write_text(f"""
daemon off;
worker_processes 1;
pid {place.directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {place.directory}/body;
  proxy_temp_path {place.directory}/proxy;
  keepalive_requests 1000000000;
  upstream api {{
    server 127.0.0.1:{place.upstream_port};
    keepalive {MOST_CONNECTIONS};
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{place.port} backlog=2048;
    location / {{
      proxy_pass http://api;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer {PROVIDER_TOKEN}";
      # Its defaults write large bodies to disk first; the others stream, so it does too.
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
    }}
  }}
}}
""")
    return ["nginx", "-e", "stderr", "-p", str(place.directory), "-c", str(config)]


def _caddy(place: Place) -> list[str]:
    config = place.directory / "Caddyfile"
    config.write_text(f"""
{{
  admin off
  auto_https off
  log {{
    level ERROR
  }}
}}
http://127.0.0.1:{place.port} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{place.upstream_port} {{
    header_up Authorization "Bearer {PROVIDER_TOKEN}"
    transport http {{
      keepalive_idle_conns {MOST_CONNECTIONS}
      keepalive_idle_conns_per_host {MOST_CONNECTIONS}
    }}
  }}
}}
""")
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


_OURS = ("python:idp-middleware",)
_UVICORN = ("python:uvicorn", "python:httptools", "python:uvloop")
_WHOLE = "verifies the caller's JWT and takes the token from the cache; the peers authenticate nobody"

CANDIDATES = (
    Candidate(
        name="floor",
        label="bare uvicorn (the floor: answers itself)",
        command=_uvicorn("floor"),
        needs=_UVICORN,
        quick=True,
        floor=True,
        injects=False,
    ),
    Candidate(
        name="ours",
        label="idp_middleware, the whole way (idp-middleware serve)",
        command=_serve,
        needs=(*_OURS, *_UVICORN),
        prefix="/idp/api",
        quick=True,
        note=_WHOLE,
    ),
    Candidate(
        name="ours-uvicorn",
        label="idp_middleware, the whole way, on plain uvicorn",
        command=_uvicorn("ours"),
        needs=(*_OURS, *_UVICORN),
        prefix="/idp/api",
        quick=True,
        note=_WHOLE + "; uvicorn started by hand",
    ),
    Candidate(
        name="ours-relay",
        label="idp_middleware, plain relay",
        command=_uvicorn("ours_relay"),
        needs=(*_OURS, *_UVICORN),
        prefix="/idp/api",
        quick=True,
        note="authenticates nobody, one token for all: what the peers do",
    ),
    Candidate(
        name="ours-h11",
        label="idp_middleware, the whole way, on uvicorn --http h11",
        command=_uvicorn("ours", http="h11"),
        needs=(*_OURS, "python:uvicorn", "python:h11", "python:httptools", "python:uvloop"),
        prefix="/idp/api",
        note=_WHOLE,
    ),
    Candidate(
        name="ours-zttp",
        label="idp_middleware, the whole way, on uvicorn --http zttp",
        command=_uvicorn("ours", http="zttp"),
        needs=(*_OURS, "python:uvicorn", "python:zttp", "python:httptools", "python:uvloop"),
        prefix="/idp/api",
        note=_WHOLE,
    ),
    Candidate(
        name="ours-granian",
        label="idp_middleware, the whole way, on granian",
        command=_granian("ours"),
        needs=(*_OURS, "python:granian", "python:httptools", "python:uvloop"),
        prefix="/idp/api",
        quick=True,
        note=_WHOLE,
    ),
    Candidate(
        name="nginx",
        label="nginx proxy_pass",
        command=_nginx,
        needs=("program:nginx",),
        quick=True,
        note="1 worker, keep-alive upstream, buffering to disk off",
    ),
    Candidate(
        name="caddy",
        label="caddy reverse_proxy",
        command=_caddy,
        needs=("program:caddy",),
        quick=True,
        note=f"{MOST_CONNECTIONS} idle upstream connections kept",
    ),
    Candidate(
        name="fastify",
        label="@fastify/http-proxy",
        command=_node("fastify.js"),
        needs=("node:@fastify/http-proxy", "node:fastify", "program:node"),
        quick=True,
        note=f"undici pool of {MOST_CONNECTIONS}",
    ),
    Candidate(
        name="http-proxy-middleware",
        label="http-proxy-middleware (express)",
        command=_node("http-proxy-middleware.js"),
        needs=("node:http-proxy-middleware", "node:express", "program:node"),
        note="keep-alive agent; the newest version for this Node",
    ),
    Candidate(
        name="aiohttp",
        label="aiohttp client in a raw ASGI app",
        command=_uvicorn("aiohttp_client"),
        needs=("python:aiohttp", *_UVICORN),
        quick=True,
        note="no connection limit, no cookie jar, no decompression",
    ),
    Candidate(
        name="asgiproxy",
        label="asgiproxy",
        command=_uvicorn("asgiproxy"),
        needs=("python:asgiproxy", "python:aiohttp", *_UVICORN),
        note=f"max_concurrency {MOST_CONNECTIONS}; holds answers up to 5 MB and uploads over 512 KB in memory",
    ),
    Candidate(
        name="httpx",
        label="httpx.AsyncClient.stream in a raw ASGI app",
        command=_uvicorn("naive_httpx"),
        needs=("python:httpx", *_UVICORN),
        note="one client, no connection limit",
    ),
    Candidate(
        name="fastapi-proxy-lib",
        label="fastapi-proxy-lib",
        command=_uvicorn("fastapi_proxy_lib"),
        needs=("python:fastapi-proxy-lib", "python:fastapi", "python:httpx", *_UVICORN),
        quick=True,
        note="reverse_http_app with a client without connection limit",
    ),
    Candidate(
        name="asgi-proxy-lib",
        label="asgi-proxy-lib",
        command=_uvicorn("asgi_proxy_lib"),
        needs=("python:asgi-proxy-lib", "python:httpx", *_UVICORN),
        injects=False,
        note="a client per request; no way to inject a token; holds whole uploads in memory",
    ),
)
