# SPDX-License-Identifier: Apache-2.0
"""What a server may answer to a hostile request."""

import json
from typing import Any

from tests.hostile.grammar import Hostile

CLIENT_ERRORS = (400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 431)


NOT_HTTP = b"Invalid HTTP request received."
"""What uvicorn says itself, before there is a request."""


def fault_of(request: Hostile, status: int, body: bytes) -> str | None:
    """What is wrong with an answer; None if nothing."""
    if status == 503 and b"try again later" in body:
        return None  # Turned away for the load, not for what it is.
    if status == 504 and b"deadline" in request.body:
        return None
    if status < 300:
        return _fault_of_success(body)
    if status not in CLIENT_ERRORS:
        return f"HTTP {status}"
    if request.method == "HEAD" or body == NOT_HTTP:
        return None
    return _fault_of_refusal(request, body)


def _fault_of_success(body: bytes) -> str | None:
    if not body.startswith((b"data:", b"event:")):
        return None
    if not body.endswith(b"\n\n"):
        return "a stream that breaks off"
    for line in body.split(b"\n"):
        text = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or text == b"[DONE]":
            continue
        try:
            event = json.loads(text)
        except ValueError:
            return f"an event that is no JSON: {text[:200]!r}"
        if isinstance(event, dict) and (
            event.get("error") or event.get("type") in ("error", "response.failed")
        ):
            return f"an error in a stream: {text[:300]!r}"
    return None


def _fault_of_refusal(request: Hostile, body: bytes) -> str | None:
    try:
        error: Any = json.loads(body)["error"]
        message, param = error["message"], error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"no message of an error: {body[:200]!r}"
    if not isinstance(message, str) or not message.strip():
        return "an empty message"
    said = f"{message} {param}".lower()
    says_json = "json_invalid" in said or "the body must" in said  # No field is read.
    names = {form for name in request.names for form in (name, name.replace("_", " "))}
    if names and not says_json and not any(name.lower() in said for name in names):
        return f"names none of {', '.join(request.names)}: {message[:300]!r}"
    return None
