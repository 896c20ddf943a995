"""A web hook of this test run, and alerts for it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ringrift_pipeline.orchestration.notify import Alert, WebhookNotifier


class Hook:
    """A web hook: what it was sent, and what it answers (the last answer again and again)."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[int] = [204]
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.dribble = 0.0
        self.got: list[tuple[str, str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
                time.sleep(hook.delay)
                if hook.dribble:
                    for sign in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 20:
                        self.wfile.write(bytes([sign]))
                        self.wfile.flush()
                        time.sleep(hook.dribble)
                status = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
                self.send_response(status)
                for name, value in hook.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # whoever asked has given up
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook/s3cret?token=1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def an_alert(key: str = "run-1", **more: Any) -> Alert:
    return Alert(
        "run_failed", key, "square8_2p generation 0003 failed", "step train: no room", **more
    )


def quick(url: str, **more: Any) -> WebhookNotifier:
    return WebhookNotifier(url, **{"timeout": 0.5, "pause": 0.01, **more})
