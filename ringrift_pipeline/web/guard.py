"""Who may ask this server what: hosts, origins, the token, and what a browser may do with a page.

The page is for one person at this machine. Any page on the web can send requests to a port of
this machine, so a request must name a host that is ours (against DNS rebinding), and must come from
our own page, unless it is a person's visit to one. Beyond the machine a token is asked for too.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ringrift_pipeline.web.errors import RequestError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TOKEN = "token"
DATA = "/api/"  # what pages ask for, and nobody visits
# A name, or a number in the brackets that IPv6 needs, and perhaps a port: nothing else of a URL.
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_SHOWN = 100  # characters of what was sent that are repeated


@dataclass(frozen=True)
class Access:
    """Where the server listens: ``host`` and ``port``, and the ``token`` asked for, if any."""

    host: str
    port: int
    token: str | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return is_local(self.host)

    @property
    def cookie(self) -> str:
        """Name of the cookie; ports share cookies, so it has the port in it."""
        return f"ringrift-{self.port}"

    def url(self, path: str = "/") -> str:
        """An address of the page, with the token in it where one is asked for.

        A server that listens on every address is named by this machine's name.
        """
        host = socket.gethostname() if self.host in ("0.0.0.0", "::", "") else self.host
        host = f"[{host}]" if ":" in host else host
        query = f"?{urlencode({TOKEN: self.token})}" if self.token else ""
        return f"http://{host}:{self.port}{path}{query}"

    def knows(self, host: str) -> bool:
        """Whether a ``Host`` header names this server; its port does not matter (tunnels).

        A number is no name that anybody could point elsewhere, but a server for this machine
        alone answers to loopback numbers only.
        """
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].strip("[]").lower()
        try:
            number = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return number.is_loopback or not self.local

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        """Names of this server, in small letters; asked for once, as a name server may be slow."""
        names = {"localhost", self.host.lower()}
        if not self.local:
            names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        return frozenset(names)


def is_local(host: str) -> bool:
    """Whether a host to listen on is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: refuses what :class:`Access` does not allow, and adds the headers.

    Refusals are JSON with ``error`` and ``field``: 421 for a foreign host (or none, or two), 401
    without the token, 403 for what another site's page asks for, a link to a page of ours excepted,
    415 for a POST that is not JSON. A WebSocket is refused likewise before it is opened.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                self.dress(scope, MutableHeaders(scope=message))
            await send(message)

        answer: Response | None
        try:
            answer = self.admit(scope)
        except RequestError as error:
            body = {"error": str(error), "field": error.field}
            answer = JSONResponse(body, error.status)
        return await (answer or self.app)(scope, receive, send_with_headers)

    def dress(self, scope: Scope, headers: MutableHeaders) -> None:
        """Add to an answer's headers what every answer has."""
        for name, value in HEADERS.items():
            headers[name] = value

    def admit(self, scope: Scope) -> Response | None:
        """None for a request that is let through, a redirect for one that brings the token.

        Raises RequestError for one that is refused.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.knows(hosts[0]):
            named = " and ".join(repr(host[:_SHOWN]) for host in hosts[:2]) or "a host without name"
            said = f"this server is not {named}: use the address that it printed"
            raise RequestError(said, "Host", 421)
        if self.access.token is not None and not self._has_cookie(headers, self.access.token):
            return self._exchange(scope, self.access.token)
        if scope["type"] == "websocket":
            self._check_origin(headers, hosts[0])
        elif scope["method"] != "POST":
            if not _is_visit(scope["path"], headers):
                self._check_origin(headers, hosts[0], "none")
        else:
            self._check_origin(headers, hosts[0])
            kinds = headers.getlist("content-type")
            if [kind.split(";")[0].strip().lower() for kind in kinds] != ["application/json"]:
                raise RequestError("send application/json", "Content-Type", 415)
        return None

    def _check_origin(self, headers: Headers, host: str, *also: str) -> None:
        # of a POST or a WebSocket browsers always send one of the two; what sends neither is no page
        origins, sites = headers.getlist("origin"), headers.getlist("sec-fetch-site")
        foreign = any(origin != f"http://{host}" for origin in origins)
        if foreign or any(site not in ("same-origin", *also) for site in sites):
            raise RequestError("only this server's own page may ask for that", "Origin", 403)

    def _has_cookie(self, headers: Headers, token: str) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self.access.cookie)
        return found is not None and _same(found.value, token)

    def _exchange(self, scope: Scope, token: str) -> RedirectResponse:
        """The same address without the token, which becomes a cookie."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = [value for name, value in query if name == TOKEN]
        if scope.get("method") != "GET" or not (given and _same(given[-1], token)):
            raise RequestError(
                "open the address that the server printed when it started: it has the token in it",
                TOKEN,
                401,
            )
        rest = urlencode([pair for pair in query if pair[0] != TOKEN])
        path = "/" + scope["path"].lstrip("/")  # "//…" would be another host
        answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
        answer.set_cookie(self.access.cookie, token, httponly=True, samesite="strict", path="/")
        return answer


def _is_visit(path: str, headers: Headers) -> bool:
    """Whether a browser opens a page, by a link from wherever: it does not ask for part of one."""
    return headers.getlist("sec-fetch-mode") == ["navigate"] and not path.startswith(DATA)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
