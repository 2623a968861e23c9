"""
Every error edgephi raises for input, files or hardware, in one tree.

    EdgephiError
    ├── InvalidRequest        a caller's field is out of bounds; nothing was started
    │   └── PromptTooLong     prompt + max_tokens exceed the context or the pages
    ├── Overloaded            no room now; retrying later may succeed
    ├── ReaderTooSlow         a client does not take its answer, so it lost it
    ├── DeadlineTooShort      the answer could not begin before the caller's deadline
    ├── NotReady              the model is loading
    │   └── Draining          the server is shutting down; another one may answer
    ├── EngineFailed          the engine or its backend failed while running requests
    ├── RequestQuarantined    computing this very request has ended the engine more than once
    ├── Unauthenticated       a call has no token, or one that is not known
    ├── PermissionDenied      a token is known but may not do this
    ├── ModelNotFound         no model of that name or in that folder
    ├── ModelInvalid          a model file is missing, damaged or of an unknown kind
    │   ├── IntegrityError    a file's size or digest differs from its manifest
    │   └── UnsupportedModel  well formed, but an architecture or quantization we do not run
    ├── BundleInvalid         the compiled library and packed weights do not fit each other
    │   └── CpuUnsupported    the library needs an instruction set this CPU lacks
    ├── CompileFailed         the compiler or the linker failed
    ├── InsufficientMemory    a plan or an allocation exceeds its budget
    └── ConfigError           a flag, an environment variable or a file is wrong

Each carries a message for a person (what, the value, the limit, what to do). One table,
edgephi.server.status, maps this tree to gRPC status codes; no status code appears elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass


class EdgephiError(Exception):
    """Base of all errors that edgephi raises on purpose."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """
    One field of a request that breaks its bound.

    Attributes:
        field: Path of the field as the contract names it, such as ``sampling.top_p``.
        description: The value, the limit and what to do.
    """

    field: str
    description: str


class InvalidRequest(EdgephiError):
    """A request breaks one or more documented bounds; nothing was started."""

    def __init__(self, *violations: FieldViolation) -> None:
        assert violations
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))


class PromptTooLong(InvalidRequest):
    """
    The prompt, or the prompt and ``max_tokens``, do not fit the context in force.

    Attributes:
        prompt_tokens: Tokens of the prompt; with ``is_estimate`` it has these at least, and was not encoded.
        max_tokens: Tokens of the answer.
        context_tokens: What they must fit.
    """

    def __init__(self, *, prompt_tokens: int, max_tokens: int, context_tokens: int, is_estimate: bool = False) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_tokens = context_tokens
        super().__init__(
            FieldViolation(
                "max_tokens" if prompt_tokens < context_tokens else "prompt",
                f"{'at least ' if is_estimate else ''}{prompt_tokens} prompt tokens + {max_tokens} max_tokens exceed "
                f"the context of {context_tokens} tokens; shorten the prompt or lower max_tokens",
            )
        )


class Overloaded(EdgephiError):
    """
    No room for the request now.

    Attributes:
        retry_after_ms: When a retry is likely to be admitted, in milliseconds.
        limit: Name of the limit that was reached, such as ``queue_requests``, ``queue_tokens``, ``queue_seconds``,
            ``client_requests`` or ``request_tokens``.
        value: What was counted, in the limit's unit; None where the message alone says it.
        most: The limit, in the same unit.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_ms: int,
        limit: str = "queue_requests",
        value: float | None = None,
        most: float | None = None,
    ) -> None:
        self.retry_after_ms = retry_after_ms
        self.limit = limit
        self.value = value
        self.most = most
        super().__init__(message)


class ReaderTooSlow(EdgephiError):
    """A client does not read its answer; it was ended, so that its place is free for others."""


class DeadlineTooShort(EdgephiError):
    """
    The answer could not begin before the caller's deadline, so nothing was started.

    Attributes:
        estimated_s: Seconds until the first token, as estimated.
        remaining_s: Seconds that the caller left.
    """

    def __init__(self, *, estimated_s: float, remaining_s: float) -> None:
        self.estimated_s = estimated_s
        self.remaining_s = remaining_s
        super().__init__(
            f"the first token is expected in {estimated_s:.1f} s and the deadline is in {remaining_s:.1f} s; "
            "send a later deadline, or retry when fewer requests wait"
        )


class NotReady(EdgephiError):
    """The model is still loading."""


class Draining(NotReady):
    """The server is shutting down: it takes nothing new, or could not complete an answer within its grace."""


class EngineFailed(EdgephiError):
    """The engine or its backend failed while requests were running."""


class RequestQuarantined(EdgephiError):
    """Computing this very request has ended the engine more than once; it is not tried again for a while."""


class Unauthenticated(EdgephiError):
    """A call has no token, or one that is not known or was revoked."""


class PermissionDenied(EdgephiError):
    """A caller is known but lacks the scope that a method needs."""


class ModelNotFound(EdgephiError):
    """No model of that name is installed, or the folder holds none."""


class ModelInvalid(EdgephiError):
    """A model's files are missing, damaged or of a kind that cannot be read."""


class IntegrityError(ModelInvalid):
    """A file's size or digest differs from what its manifest says."""


class UnsupportedModel(ModelInvalid):
    """The files are well formed but name an architecture or quantization that is not run."""


class BundleInvalid(EdgephiError):
    """A compiled library and packed weights do not belong together, or are damaged."""


class CpuUnsupported(BundleInvalid):
    """The compiled library needs instructions this CPU does not have."""


class CompileFailed(EdgephiError):
    """Compiling or linking a model library failed."""


class InsufficientMemory(EdgephiError):
    """An allocation or a plan exceeds the memory budget; the message has the numbers."""


class ConfigError(EdgephiError):
    """A flag, an environment variable or a configuration file is wrong."""
