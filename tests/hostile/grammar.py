# SPDX-License-Identifier: Apache-2.0
"""Hostile requests: number ``i`` of a seed is always the same one."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.hostile.pictures import picture_url
from tests.hostile.values import (
    Schema,
    as_json,
    fitting_value,
    odd_string,
    odd_value,
)
from tests.server.client import MODEL, Json, small_chat
from vllm_lladav.options.options import REQUEST_OPTIONS

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}

ALSO_CALLED = {
    "echo": ("prompt_logprobs",),
    "include": ("logprobs",),
    "input": ("prompt", "message", "conversation", "tool", "content", "image"),
    "instructions": ("prompt", "content"),
    "logprobs": ("top_logprobs", "logprobs"),
    "max_completion_tokens": ("max_tokens",),
    "max_output_tokens": ("max_tokens",),
    "messages": (
        "prompt",
        "message",
        "conversation",
        "content",
        "role",
        "image",
        "text",
    ),
    "max_tokens": ("max_completion_tokens",),
    "min_tokens": ("max_tokens",),
    "previous_response_id": ("response with id",),
    "prompt_embeds": ("prompt",),
    "response_format": ("structured_outputs",),
    "stop_sequences": ("stop",),
    "system": ("prompt", "content"),
    "text": ("response_format", "structured_outputs"),
    "tokens": ("token",),
    "tool_choice": ("tool",),
    "truncate_prompt_tokens": ("prompt",),
    "use_beam_search": ("beam search",),
    "tools": ("tool",),
    "top_logprobs": ("logprobs",),
}
"""What a refusal may name instead of the field that a client sent."""


@dataclass(frozen=True)
class Hostile:
    """A request.

    Attributes:
        number: within its seed.
        kind: of the generator that made it.
        what: is wrong with it, for a person.
        names: of which a refusal must name one; any refusal will do if there are none.
        leave_after: seconds after which the client goes away.
        is_canceled: a background response, which is cancelled at once.
    """

    number: int
    kind: str
    what: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    names: tuple[str, ...] = ()
    leave_after: float | None = None
    is_canceled: bool = False


def _bases() -> dict[str, Json]:
    """A small valid request for every route that is known."""
    message = {"role": "user", "content": "w1 w2"}
    small = {"model": MODEL, "vllm_xargs": {"gen_length": 4, "steps": 1}}
    plain = {**small, "temperature": 0}
    return {
        CHAT: small_chat(),
        f"{CHAT}/batch": {**plain, "messages": [[message], [message]]},
        "/v1/completions": {**plain, "prompt": "w1 w2"},
        "/v1/responses": {**plain, "input": "w1 w2"},
        "/v1/messages": {**plain, "messages": [message], "max_tokens": 4},
        "/v1/messages/count_tokens": {"model": MODEL, "messages": [message]},
        "/tokenize": {"model": MODEL, "prompt": "w1 w2"},
        "/detokenize": {"model": MODEL, "tokens": [5, 6]},
        "/invocations": small_chat(),
        "/inference/v1/generate": {
            "model": MODEL,
            "token_ids": [5, 6],
            "sampling_params": {
                "temperature": 0,
                "max_tokens": 4,
                "extra_args": {"gen_length": 4, "steps": 1},
            },
        },
        "/generative_scoring": {
            **{"model": MODEL, "query": "w1", "items": ["w2"]},
            "label_token_ids": [5, 6],
        },
        "/v1/systemone": {
            "model": MODEL,
            "state": "w1",
            "questions": {"q": {"type": "yes_no", "question": "w2"}},
        },
        "/scale_elastic_ep": {},
    }


BASES = _bases()

LISTS = ("messages", "input", "prompt", "tools", "stop")
"""Fields that are lists on some route."""

REFUSING = ("/generative_scoring", "/v1/systemone")
"""Routes that our models do not have, whatever they are asked."""

ASKING = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", f"{CHAT}/batch")
"""Routes that generate."""


class Grammar:
    """Hostile requests to a server.

    Args:
        openapi: what its ``/openapi.json`` says.
        seed: another one makes other requests.
    """

    def __init__(self, openapi: Json, seed: int) -> None:
        self._seed = seed
        self._schemas: dict[str, Schema] = openapi["components"]["schemas"]
        self._routes = [
            (method.upper(), path, operation)
            for path, methods in sorted(openapi["paths"].items())
            for method, operation in sorted(methods.items())
        ]
        self._bodies = {
            path: schema
            for method, path, operation in self._routes
            if method == "POST" and (schema := _schema_of_body(operation)) is not None
        }
        self._asking = [path for path in ASKING if path in self._bodies]
        kinds: list[tuple[int, Callable[[Random], dict[str, Any]]]] = [
            (40, self._field),
            (20, self._option),
            (6, self._several),
            (10, self._schema),
            (8, self._bytes),
            (3, self._header),
            (4, self._route),
            (14, self._picture),
            (5, self._stops),
            (6, self._leaving),
            (2, self._cancel),
        ]
        self._kinds = [kind for _, kind in kinds]
        self._weights = [weight for weight, _ in kinds]

    def request(self, number: int) -> Hostile:
        random = Random(f"{self._seed}:{number}")
        (kind,) = random.choices(self._kinds, self._weights)
        parts = {"method": "POST", **kind(random)}
        return Hostile(number=number, kind=kind.__name__.strip("_"), **parts)

    def _field(self, random: Random) -> dict[str, Any]:
        """One field, or one of its own fields, is odd."""
        often = [*self._asking * 3, *self._bodies]
        path = random.choice(often)
        schema = self._resolved(self._bodies[path], random)
        name = random.choice(list(schema.get("properties", {"x": {}})))
        of_name = schema.get("properties", {}).get(name, {})
        if random.random() < 0.6:
            value = odd_value(random)
        else:
            value = fitting_value(of_name, self._schemas, random)
        body = self._base(path, random)
        if name == "prompt" and "messages" in body or name == "prompt_embeds":
            body.pop("prompt", None)
        body[name] = value
        if name != "stream" and random.random() < 0.25:
            body["stream"] = True
        inner = map(str, value) if isinstance(value, dict) else ()
        names = (name, *ALSO_CALLED.get(name, ()), *inner)
        # The rest of a body that is made by its schema may be at fault, too.
        is_known = path.removesuffix("/render") in BASES and path not in REFUSING
        if name == "vllm_xargs" or not is_known:
            names = ()
        what = f"{name} = {_short(value)}"
        return _post(path, body, what, names)

    def _option(self, random: Random) -> dict[str, Any]:
        """One of ``vllm_xargs`` is odd."""
        path = random.choice(self._asking)
        name = random.choice([*REQUEST_OPTIONS, "unknown"])
        options = {"gen_length": 4, "steps": 1, name: odd_value(random)}
        body = {**self._base(path, random), "vllm_xargs": options}
        if random.random() < 0.3:
            body["stream"] = True
        what = f"vllm_xargs.{name} = {_short(options[name])}"
        # Options of one rule are named for each other.
        names = (name, "gen_length", "block_length", "steps", "prune_", "max_tokens")
        return _post(path, body, what, names)

    def _several(self, random: Random) -> dict[str, Any]:
        """Several fields are odd."""
        path = random.choice(list(self._bodies))
        schema = self._resolved(self._bodies[path], random)
        body = self._base(path, random)
        known = list(schema.get("properties", {"x": {}}))
        for _ in range(random.randrange(2, 6)):
            of_name = schema.get("properties", {}).get(name := random.choice(known), {})
            is_odd = random.random() < 0.3
            body[name] = (
                odd_value(random)
                if is_odd
                else fitting_value(of_name, self._schemas, random)
            )
        if random.random() < 0.2:
            body[odd_string(random)[:5000]] = odd_value(random)
        return _post(path, _tamed(body), ", ".join(body))

    def _schema(self, random: Random) -> dict[str, Any]:
        """A body that is all made by the route's schema."""
        path = random.choice(list(self._bodies))
        body = fitting_value(self._bodies[path], self._schemas, random)
        if isinstance(body, dict):
            body = _tamed({**body, "model": MODEL})
        return _post(path, body, "by its schema")

    def _bytes(self, random: Random) -> dict[str, Any]:
        """A body that is no JSON, or no object."""
        path = random.choice([*self._bodies, "/invocations", "/scale_elastic_ep"])
        whole = as_json(self._base(path, random))
        cut = random.randrange(len(whole))
        bodies = {
            "empty": b"",
            "list": b"[]",
            "list of it": b"[" + whole + b"]",
            "null": b"null",
            "number": b"5",
            "string": b'"model"',
            "text": b"model=lladav&prompt=w1",
            "cut": whole[:cut],
            "spoilt": whole[:cut] + random.randbytes(3) + whole[cut + 3 :],
            "twice": whole + whole,
            "duplicate keys": whole[:-1] + b', "model": 5, "model": "x"}',
            "trailing comma": whole[:-1] + b",}",
            "utf-16": whole.decode().encode("utf-16"),
            "marked": b"\xef\xbb\xbf" + whole,
            "invalid utf-8": whole[:-1] + b', "user": "\xff\xfe\xc0"}',
            "random": random.randbytes(200),
            "deep list": b"[" * 100_000 + b"]" * 100_000,
            "deep dict": b'{"a":' * 100_000,
            "deep field": as_json({**self._base(path, random), "x": "raw:deep list"}),
            "long number": whole[:-1] + b', "seed": ' + b"9" * 5000 + b"}",
            "zip": gzip.compress(whole),
            "zeros": bytes(100_000),
            "blanks": b" " * 1_000_000 + whole,
            "path": as_json({**self._base(path, random), "model": "/a" * 20_000}),
            "empty objects": as_json(
                {**self._base(path, random), **dict.fromkeys(LISTS, [{}] * 20_000)}
            ),
            "errors": as_json(
                {**self._base(path, random), **dict.fromkeys(LISTS, [{}] * 900)}
            ),
        }
        what, body = random.choice(list(bodies.items()))
        return {"path": path, "body": body, "what": what}

    def _header(self, random: Random) -> dict[str, Any]:
        """A good body under headers that do not fit it."""
        path = random.choice(list(self._bodies))
        body = as_json(self._base(path, random))
        headers = random.choice(
            (
                {},
                {"Content-Type": ""},
                {"Content-Type": "text/plain"},
                {"Content-Type": "application/json; charset=utf-16"},
                {"Content-Type": "multipart/form-data; boundary=x"},
                {"Content-Type": "application/x-www-form-urlencoded"},
                {"Content-Type": "application/json" + ";a=b" * 500},
                {**JSON, "Content-Encoding": "gzip"},
                {**JSON, "Content-Encoding": "zstd"},
                {**JSON, "X-Request-Id": "x" * 5000},
                {**JSON, "X-Request-Id": "\u00e9\u00e8"},
                {**JSON, "X-data-parallel-rank": random.choice(("x", "-1", "9" * 30))},
                {**JSON, "Authorization": "Bearer " + "x" * 5000},
                {**JSON, "Range": "bytes=0-1", "Expect": "200-ok"},
                {**JSON, "X-Session-Id": "x" * 5000},
                {**JSON, **{f"X-{index}": "x" * 100 for index in range(90)}},
            )
        )
        return {
            "path": path,
            "body": body,
            "headers": headers,
            "what": str(headers)[:80],
        }

    def _route(self, random: Random) -> dict[str, Any]:
        """A route that is none, another method, or a strange parameter."""
        _, path, _ = random.choice(self._routes)
        odd = (
            "..",
            "%00",
            "%ff%fe",
            "x" * 3000,
            "\u05e9",
            "%d8%00",
            "a/b",
            "resp_1",
            "",
        )
        while "{" in path:
            before, _, after = path.partition("{")
            path = before + random.choice(odd) + after.partition("}")[2]
        if random.random() < 0.3:
            path += random.choice(("/", "/x", "/%00", "//", "?stream=x", "?x[]=1&x=2"))
        elif random.random() < 0.3:
            path += (
                f"?starting_after={random.choice(('-1', 'x', '9' * 30))}&stream=true"
            )
        methods = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "ODD")
        method = random.choice(methods)
        body = b"{}" if random.random() < 0.5 else b""
        return {"method": method, "path": path, "body": body, "what": method}

    def _picture(self, random: Random) -> dict[str, Any]:
        """Images of any kind, with text that may not fit them."""
        count = random.choice((1, 1, 1, 1, 2, 3))
        pictures = [picture_url(random) for _ in range(count)]
        text = random.choice(("w5",) * 6 + ("<image>", "<image> w5 <image>", "", "\0"))
        what = "; ".join(name for name, _ in pictures) + f", text {text!r}"
        path = random.choice((CHAT, CHAT, CHAT, "/v1/messages", "/v1/responses"))
        body = self._base(path, random)
        if path == CHAT:
            content: list[Json] = [
                {"type": "image_url", "image_url": {"url": url}} for _, url in pictures
            ]
            content.append({"type": "text", "text": text})
            body["messages"] = [{"role": "user", "content": content}]
        elif path == "/v1/messages":
            content = [_anthropic_image(url, random) for _, url in pictures]
            content.append({"type": "text", "text": text})
            body["messages"] = [{"role": "user", "content": content}]
        else:
            content = [
                {"type": "input_image", "image_url": url, "detail": "auto"}
                for _, url in pictures
            ]
            content.append({"type": "input_text", "text": text})
            body["input"] = [{"role": "user", "content": content}]
        if random.random() < 0.2:
            rate = random.choice((0.5, 0.99, 0))
            body["vllm_xargs"] = {**body["vllm_xargs"], "prune_rate": rate}
        if random.random() < 0.2:
            body["stream"] = True
        return _post(
            path, body, what, ("image", "text", "url", "media", "content", "prompt")
        )

    def _stops(self, random: Random) -> dict[str, Any]:
        """Many, long and overlapping stops."""
        stops = random.choice(
            (
                [f"w{index}" for index in range(random.choice((4, 5, 40, 5000)))],
                ["w1 w2 w3", "w2 w3", "w3", "w1 w2"],
                ["w7 " * 300],
                ["w7 " * 30_000],
                [odd_string(random) for _ in range(3)],
                [" ", "  ", "   ", " w"],
                ["<|mdm_mask|>", "<|eot_id|>"],
                ["\ud800"],
            )
        )
        body = small_chat(
            stop=stops, vllm_xargs={"gen_length": 32, "block_length": 8, "steps": 32}
        )
        if random.random() < 0.3:
            body["stop_token_ids"] = random.choice(
                ([5, 6, 5], list(range(40)), [-1], [2**40], [126_348], [5] * 5000)
            )
        if random.random() < 0.3:
            body["stream"] = True
        names = ("stop", "stop_token_ids")
        return _post(CHAT, body, _short(stops), names)

    def _leaving(self, random: Random) -> dict[str, Any]:
        """A client that goes away at some moment, most often in mid-stream."""
        path = random.choice(ASKING[:4])
        body = self._base(path, random)
        body["vllm_xargs"] = {"gen_length": 256, "block_length": 8, "steps": 256}
        body["stream"] = random.random() < 0.8
        for name in ("max_tokens", "max_output_tokens"):
            if name in body:
                body[name] = 256
        # Of stays of any order of magnitude, as many.
        leave_after = 10 ** random.uniform(-3, 0.3)
        post = _post(path, body, f"leaves after {leave_after:.3f} s")
        return {**post, "leave_after": leave_after}

    def _cancel(self, random: Random) -> dict[str, Any]:
        """A response in the background, and its end."""
        body = self._base("/v1/responses", random)
        body |= {"background": True, "stream": random.random() < 0.3}
        post = _post("/v1/responses", body, "cancelled")
        return {**post, "is_canceled": True}

    def _base(self, path: str, random: Random) -> Json:
        known = BASES.get(path.removesuffix("/render"))
        if known is None:
            made = fitting_value(self._bodies[path], self._schemas, random)
            return made if isinstance(made, dict) else {}
        copied: Json = json.loads(json.dumps(known))
        return copied

    def _resolved(self, schema: Schema, random: Random) -> Schema:
        """The schema of one form of a body."""
        while "properties" not in schema:
            if "$ref" in schema:
                schema = self._schemas[schema["$ref"].rpartition("/")[2]]
            elif "anyOf" in schema:
                schema = random.choice(schema["anyOf"])
            else:
                return {}
        return schema


def _schema_of_body(operation: Json) -> Schema | None:
    content = operation.get("requestBody", {}).get("content", {})
    found: Schema | None = content.get("application/json", {}).get("schema")
    return found


def _post(
    path: str, body: Any, what: str, names: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {"path": path, "body": as_json(body), "what": what, "names": names}


def _tamed(body: Json) -> Json:
    """With a canvas that is small, unless the body asks for something else."""
    return {"vllm_xargs": {"gen_length": 4, "steps": 1}, **body}


def _anthropic_image(url: str, random: Random) -> Json:
    spec, _, data = url.partition(",")
    if not spec.startswith("data:") or random.random() < 0.1:
        return {"type": "image", "source": {"type": "url", "url": url}}
    mime = spec.removeprefix("data:").partition(";")[0]
    source = {"type": "base64", "media_type": mime, "data": data}
    return {"type": "image", "source": source}


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        text = "an integer of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
