"""The guard of the Dagster UI, whose server checks no host and no origin and asks for no password.

By itself that server runs whatever a GET or a POST of any kind brings as a query, a mutation too:
without a guard any page on the web could launch runs on this machine.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Scope

from ringrift_pipeline.web.errors import RequestError
from ringrift_pipeline.web.guard import HEADERS, Guard

LARGEST_BODY = 16 << 20  # bytes of a POST
QUERIES = "/graphql"

_POLICY = "Content-Security-Policy"
# Beside the page's own policy, which says which scripts run: nothing is sent or fetched elsewhere.
_CLOSED = (
    "connect-src 'self' ws://{host}; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self'; frame-src 'self'; worker-src 'self' blob:; manifest-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of the page to type queries on, which has no policy and a script in its text.
_TYPED = "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
# Of all else. Scripts are among it, and those of workers have the policy that they come with.
_STRICT = "default-src 'none'; script-src 'self'; style-src 'self'; "


class UIGuard(Guard):
    """:class:`Guard` of the Dagster UI's application.

    Beyond what that refuses, with 404 a path with ``..`` in it, with 405 a query that comes as a
    GET, which a picture on any page could send, and a POST of unknown (411) or too many (413)
    bytes. The UI's pages keep their own content policy; a second one, which browsers hold as well,
    keeps them from reaching elsewhere.
    """

    def admit(self, scope: Scope) -> Response | None:
        """As the guard's."""
        answer = super().admit(scope)
        if answer is not None or scope["type"] != "http":
            return answer
        headers = Headers(scope=scope)
        if ".." in scope["path"].replace("\\", "/").split("/"):
            raise RequestError("there is nothing above the first page", None, 404)
        if scope["method"] == "POST":
            length = headers.get("content-length", "")
            # which is not what counts where the body comes in chunks as well
            if "transfer-encoding" in headers or not (length.isascii() and length.isdecimal()):
                raise RequestError("say how long the body is", "Content-Length", 411)
            if len(length) > 12 or int(length) > LARGEST_BODY:
                said = f"more than {LARGEST_BODY} bytes"
                raise RequestError(said, "Content-Length", 413)
        elif scope["path"].rstrip("/") == QUERIES and "text/html" not in headers.get("accept", ""):
            raise RequestError("queries are posted", None, 405)
        return None

    def dress(self, scope: Scope, headers: MutableHeaders) -> None:
        """As the guard's, but for the policy and for what the UI says of keeping its files."""
        for name, value in HEADERS.items():
            if name not in (_POLICY, "Cache-Control"):
                headers[name] = value
        headers.setdefault("Cache-Control", "no-store")
        [host, *_] = Headers(scope=scope).getlist("host") or [""]
        closed = _CLOSED.format(host=host if self.access.knows(host) else "localhost")
        if _POLICY in headers:
            headers.append(_POLICY, closed)
        elif headers.get("content-type", "").startswith("text/html"):
            headers[_POLICY] = _TYPED + closed
        else:
            headers[_POLICY] = _STRICT + closed
