# SPDX-License-Identifier: Apache-2.0
"""The clients that are tried, and what each of them is asked to do."""

from dataclasses import dataclass

TRIALS = {
    "text": "Text",
    "picture": "Picture",
    "streaming": "Streaming",
    "xargs": "`vllm_xargs`",
    "structured": "Structured output",
}
"""Name of a trial -> heading of its column."""


@dataclass(frozen=True)
class Client:
    """A client, or one of its APIs.

    Attributes:
        title: in the table.
        script: file of this folder. It is given the name of a trial.
        trials: that the script knows. What the client has no way to say is left out.
        package: whose version is named.
        requirements: what is installed; clients of one package share it.
        with_node: an npm package.
        shows_answers: to the one question about docs/picture.png.
    """

    title: str
    script: str
    trials: tuple[str, ...]
    package: str
    requirements: tuple[str, ...]
    with_node: bool = False
    shows_answers: bool = True


_ALL = tuple(TRIALS)
_OPENAI = ("openai", ("openai",))

CLIENTS = (
    Client("openai for Python, chat", "openai_chat.py", _ALL, *_OPENAI),
    Client(
        "openai for Python, asynchronous",
        "openai_async.py",
        ("picture", "streaming", "xargs"),
        *_OPENAI,
    ),
    Client("openai for Python, responses", "openai_responses.py", _ALL, *_OPENAI),
    Client(
        "openai for Python, completions",
        "openai_completions.py",
        ("text", "streaming", "xargs"),
        *_OPENAI,
        shows_answers=False,
    ),
    Client("openai for Node", "openai_node.mjs", _ALL, *_OPENAI, with_node=True),
    Client(
        "anthropic for Python",
        "anthropic_messages.py",
        ("text", "picture", "streaming", "xargs"),
        "anthropic",
        ("anthropic",),
    ),
    Client(
        "LangChain",
        "langchain_chat.py",
        _ALL,
        "langchain-openai",
        ("langchain-openai",),
    ),
    Client("LiteLLM", "litellm_chat.py", _ALL, "litellm", ("litellm",)),
    Client(
        "llm",
        "llm.sh",
        ("text", "picture", "streaming", "structured"),
        "llm",
        ("llm",),
    ),
    Client(
        "Instructor",
        "instructor_chat.py",
        ("structured",),
        "instructor",
        ("instructor",),
    ),
    Client(
        "Pydantic AI",
        "pydantic_ai_chat.py",
        _ALL,
        "pydantic-ai-slim",
        ("pydantic-ai-slim[openai]",),
    ),
    Client(
        "GuideLLM",
        "guidellm.sh",
        ("text", "picture", "xargs"),
        "guidellm",
        ("guidellm[vision]",),
        shows_answers=False,
    ),
    Client(
        "AIPerf",
        "aiperf.sh",
        ("text", "picture", "xargs"),
        "aiperf",
        ("aiperf",),
        shows_answers=False,
    ),
    Client(
        "lmms-eval",
        "lmms_eval.sh",
        ("picture", "xargs"),
        "lmms-eval",
        ("lmms-eval==0.7.3", "filelock<4"),
        shows_answers=False,
    ),
)
