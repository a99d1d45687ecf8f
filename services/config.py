"""What a server is told: which rewards it hosts, where, and within which limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rewardzoo.clients.images import MAX_PIXELS
from rewardzoo.clients.wire import MAX_PROMPT_BYTES

MAX_TIMEOUT = 3600.0


class ServeConfig(BaseSettings):
    """The settings of one server, from arguments or from `REWARDZOO_*` in the environment.

    `REWARDZOO_REWARDS` is a list with commas, `REWARDZOO_WEIGHTS` a JSON object of names and paths.
    The environment is read when a config is made, never at import.
    """

    # Without the inputs in errors, because one of them may be the token.
    model_config = SettingsConfigDict(env_prefix="REWARDZOO_", frozen=True, hide_input_in_errors=True)

    rewards: Annotated[list[str], NoDecode] = []
    """Names of rewards, `name` or `name:variant`; empty means the service's own default."""
    device: str = "auto"
    """A torch device, or "auto" for the GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What the weights of all rewards are held in; None means as each reward's spec has it."""
    token: Annotated[SecretStr, Field(min_length=1)] | None = None
    """What callers must send as `Authorization: Bearer …`; None lets everyone in."""
    weights: dict[str, Path] = {}
    """Checkpoints to use instead of the hub's, by reward name."""
    max_queue: int = Field(default=8192, gt=0)
    """Items that may wait for a reward; a request beyond that is refused with 503."""
    max_body_mb: int = Field(default=256, gt=0)
    """Largest request body in MiB, before and after decompression."""
    timeout: float = Field(default=60.0, gt=0, lt=MAX_TIMEOUT)
    """Seconds from a request's first byte to its scores; then it is answered with 504. Callers can ask for
    less in the header `Request-Timeout`."""
    max_queue_mb: int = Field(default=2048, gt=0)
    """MiB that the requests which are read or scored may take in all; one beyond that is refused with 503."""
    window_ms: float = Field(default=2.0, ge=0, le=1000)
    """How long a batch that is not full waits for company."""
    ui: Literal["auto", "on", "off"] = "auto"
    """Whether there is a page at `/`; "auto": where the extra `ui` is installed."""
    compat: Annotated[list[Literal["openrlhf", "flow_factory", "unirl"]], NoDecode] = []
    """Other projects' reward protocols that are answered too, see `rewardzoo.services.compat`."""
    threads: int = Field(default=0, ge=0)
    """Threads that decode and preprocess images; 0 is one a core."""
    memory_gb: float | None = Field(default=None, gt=0)
    """GiB that the weights of all loaded rewards may take; beyond, the least recently used is evicted."""
    pinned: Annotated[list[str], NoDecode] = []
    """Names among `rewards` that are loaded at start and never evicted."""
    lazy: bool = False
    """Whether a reward that is not pinned is loaded at its first request only."""
    warm_up: bool | None = None
    """Whether a picture is scored before a reward is ready; None means on a GPU."""
    token_file: Path | None = None
    """A file that holds the token instead, read when the config is made and never again."""
    max_items: int = Field(default=4096, gt=0)
    """Most image-prompt pairs in one request; more are refused with 413."""
    max_pixels: int = Field(default=4096 * 4096, gt=0, le=MAX_PIXELS)
    """Most pixels of an image; a larger one is refused before it is decoded, and fails alone."""
    max_prompt_bytes: int = Field(default=MAX_PROMPT_BYTES, gt=0, le=MAX_PROMPT_BYTES)
    """Most bytes of a prompt in UTF-8; a longer one fails alone."""
    max_json_mb: int = Field(default=32, gt=0)
    """Largest JSON part of a request in MiB: parsed, it takes twenty times its size and more."""
    open_metrics: bool = False
    """Whether /metrics can be read without the token."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """How the server's lines look; "auto" is text for a terminal and one JSON object a line else."""

    @field_validator("rewards", "pinned", "compat", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        )

    @model_validator(mode="before")
    @classmethod
    def _read_token(cls, values: Any) -> Any:
        if not (isinstance(values, dict) and values.get("token_file")):
            return values
        if values.get("token"):
            raise ValueError("token and token_file are both set: leave one out")
        return {**values, "token": _token_in(Path(values["token_file"]))}

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: SecretStr | None) -> SecretStr | None:
        text = "" if token is None else token.get_secret_value()
        # It must fit into a header as it is, or every caller would be refused.
        if not all("!" <= letter <= "~" for letter in text):
            raise ValueError("a token has printable ASCII characters only, and no spaces")
        return token

    @property
    def max_body(self) -> int:
        """`max_body_mb` in bytes."""
        return self.max_body_mb * 2**20

    @property
    def max_json(self) -> int:
        """`max_json_mb` in bytes."""
        return self.max_json_mb * 2**20

    def environment(self) -> dict[str, str]:
        """Return the variables from which another process reads this very config."""
        listed = {"rewards", "pinned", "compat"}
        fields = self.model_dump(mode="json", exclude={"token", "token_file", "weights", *listed})
        values = {name: str(value) for name, value in fields.items() if value is not None}
        values["rewards"], values["pinned"] = ",".join(self.rewards), ",".join(self.pinned)
        values["compat"] = ",".join(self.compat)
        values["weights"] = json.dumps({name: str(path.resolve()) for name, path in self.weights.items()})
        if self.token_file is not None:
            values["token_file"] = str(self.token_file.resolve())
        elif self.token is not None:
            values["token"] = self.token.get_secret_value()
        return {f"REWARDZOO_{name.upper()}": value for name, value in values.items()}


def _token_in(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the token file {str(path)!r} cannot be read: {error}") from error
    if not token:
        raise ValueError(f"the token file {str(path)!r} is empty")
    return token
