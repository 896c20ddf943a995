"""Who may ask this server what: hosts, origins, the token, and what a browser may do with a page.

The page is for one person at this machine. Any page on the web can send requests to a port of
this machine, so a request must name a host that is ours (against DNS rebinding), and one that
makes the machine work must come from our own page. Beyond the machine a token is asked for too.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ringrift_pipeline.web.errors import RequestError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TOKEN = "token"


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
        return f"ringrift-play-{self.port}"

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
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            number = ipaddress.ip_address(name)
        except ValueError:
            names = {"localhost", self.host.lower()}
            if not self.local:
                names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
            return name in names
        return number.is_loopback or not self.local


def is_local(host: str) -> bool:
    """Whether a host to listen on is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: refuses what :class:`Access` does not allow, and adds the headers.

    Refusals are JSON with ``error`` and ``field``: 421 for a foreign host, 401 without the token,
    403 for a foreign origin, 415 for a POST that is not JSON.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer: Response | None
        try:
            answer = self._admit(scope)
        except RequestError as error:
            body = {"error": str(error), "field": error.field}
            answer = JSONResponse(body, error.status)
        return await (answer or self.app)(scope, receive, send_with_headers)

    def _admit(self, scope: Scope) -> RedirectResponse | None:
        """None for a request that is let through, a redirect for one that brings the token."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.access.knows(host):
            said = f"this server is not {host!r}: use the address that it printed"
            raise RequestError(said, "Host", 421)
        if self.access.token is not None and not self._has_cookie(headers, self.access.token):
            return self._exchange(scope, self.access.token)
        if scope["method"] == "POST":
            self._check_post(headers, host)
        return None

    def _check_post(self, headers: Headers, host: str) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        # browsers always send one of the two; what sends neither is no page
        if (origin is not None and origin != f"http://{host}") or site != "same-origin":
            raise RequestError("only this server's own page may ask for that", "Origin", 403)
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError("send application/json", "Content-Type", 415)

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
        if scope["method"] != "GET" or not (given and _same(given[-1], token)):
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


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
