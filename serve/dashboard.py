"""The gateway's own page for those without Grafana: one file that asks nobody but this gateway."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

PAGE = (files("serve") / "dashboard.html").read_text(encoding="utf-8")


def content_security_policy(page: str) -> str:
    """Return a policy that lets a page's own style and script run and ask its own origin.

    By hash rather than by nonce: the page is the same for everybody. Source: CSP Level 3, W3C.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hashes(page, 'style')}",
            f"script-src {_hashes(page, 'script')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hashes(page: str, element: str) -> str:
    texts = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


PAGE_HEADERS = {
    "content-security-policy": content_security_policy(PAGE),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
