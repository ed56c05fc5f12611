"""Settings of a language model that judges or ranks answers."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.numbers import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_numbers
from demo.assets import cache_folder

OWN_KEYS = ("model", "messages", "stream", "n")
"""Fields of a request that `extra_body` must not replace."""
UNHASHED = ("api_key_env", "concurrency", "timeout", "max_retries", "cache")
"""Settings that do not change the replies, and so are left out of the fingerprints of stages."""


@dataclass
class LLMConfig:
    """A language model behind an OpenAI-compatible API, which compares and rates answers. All ours."""

    endpoint: str | None = None
    """Base URL of the API, such as http://localhost:8000/v1; questions go to <endpoint>/chat/completions. Ours."""
    model: str | None = None
    """Name of the model at the endpoint. Ours."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key, never the key itself; null sends no key. Ours."""
    prompt_file: str | None = None
    """A Jinja file with the question that compares two answers; null uses evaluation/judges/prompts/compare.j2. Ours.
    """
    metadata_prompt_file: str | None = None
    """A Jinja file with the question about one answer; null uses evaluation/judges/prompts/metadata.j2. Ours."""
    temperature: NonNegativeFloat | None = 0.0
    """Sampling temperature of the judge; null leaves it out, for models that refuse it. Ours."""
    max_tokens: PositiveInt | None = 1024
    """Maximum length of a reply in tokens; null leaves it out, for models that refuse it. Ours."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as `seed`, `reasoning_effort` or `max_completion_tokens`. Ours."""
    max_prompts: PositiveInt | None = None
    """Maximum number of prompts to ask about in the evaluation, spread evenly over the set; null uses all. Ours."""
    concurrency: PositiveInt = 8
    """Maximum number of requests at the same time. Ours."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for a reply before the request is sent again. Ours."""
    max_retries: NonNegativeInt = 8
    """Retries of a request after rate limits, server errors, timeouts and lost connections. Ours."""
    input_price: NonNegativeFloat | None = None
    """Price of a million input tokens, in any currency; null reports no cost. Ours."""
    output_price: NonNegativeFloat | None = None
    """Price of a million output tokens; null reports no cost. Ours."""
    cache: str | None = None
    """Folder of the replies, in plain text; null uses `llm` in $RLHF_PTX_CACHE, or else ~/.cache/rlhf-ptx/llm. Ours."""

    def validate(self, name: str = "evaluate.llm") -> None:
        """Raises ValueError on contradictions; `name` is the section's dotted name."""
        check_numbers(self, name)
        if self.timeout > 86_400:
            raise ValueError(f"{name}.timeout={self.timeout:g} must be at most 86400 seconds, a day")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError(f"{name}.endpoint and {name}.model must be given together")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError(f"{name}.input_price and {name}.output_price must be given together")
        if own := [key for key in OWN_KEYS if key in self.extra_body]:
            raise ValueError(f"{name}.extra_body must not contain {own[0]!r}, which every request sets")
        if self.endpoint is not None:
            refuse_bad_url(f"{name}.endpoint", self.endpoint)

    def api_key(self) -> str | None:
        """The key from the environment, None if none is configured. Raises ValueError, without the key, if it is
        missing or not printable ASCII.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {shown(self.api_key_env)} (api_key_env), which should hold the API key of "
                "the language model, is not set"
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the API key in {shown(self.api_key_env)} has characters that a key cannot have")
        return key

    def cache_place(self) -> Path:
        """The folder of the replies."""
        return cache_folder() / "llm" if self.cache is None else Path(self.cache)


def shown(variable: str) -> str:
    """The name of an environment variable for messages, unless it looks like a key that was put in its place."""
    return f"${variable}" if variable.isidentifier() and len(variable) < 40 else "that api_key_env names"


def refuse_bad_url(name: str, url: str) -> None:
    """Raises ValueError for a URL that cannot be a base URL, or contains a password or query."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{name} must be a URL such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"{name} must not contain a user, password or query: it is stored with the results; give a key by "
            "api_key_env"
        )
    if parts.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"{name}={url} must be the base URL, without /chat/completions at its end")
