"""The sampling fields of a request as options of a command, and their forms for the engine and for the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from edgephi.client.requests import Sampling
    from edgephi.engine.request import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """
    What a person chose; None leaves a field to the model. Bounds are those of ``engine.request.SamplingParams``.

    Attributes:
        max_tokens: Most tokens to generate.
        stop: Strings that end the answer.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logprobs: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def chosen(self) -> dict[str, Any]:
        """Return the fields that were given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value != ()}

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """Return the engine's parameters: the model's defaults with what was chosen put over them."""
        import dataclasses

        chosen = self.chosen()
        chosen.pop("max_tokens", None)
        chosen.pop("stop", None)
        return dataclasses.replace(defaults, **chosen)

    def for_client(self) -> Sampling:
        """Return the client's form."""
        return cast("Sampling", self.chosen())


_OPTIONS = (
    click.option("-n", "--max-tokens", type=int, help="Most tokens to generate.  [default: all that fit]"),
    click.option("-t", "--temperature", type=float, help="0 (always the likeliest) to 2.  [default: the model's]"),
    click.option("--top-p", type=float, help="Keep the likeliest tokens up to this mass, above 0 to 1."),
    click.option("--top-k", type=int, help="Keep this many of the likeliest tokens."),
    click.option("--min-p", type=float, help="Drop tokens below this fraction of the likeliest, 0 to 1."),
    click.option("--repetition-penalty", type=float, help="Above 1 discourages repetition, 0.1 to 10."),
    click.option("--presence-penalty", type=float, help="Once per token already in the answer, -2 to 2."),
    click.option("--frequency-penalty", type=float, help="Per occurrence in the answer, -2 to 2."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
)


def sampling_options(command: F) -> F:
    """Add the sampling options to a command; it takes them as ``SamplingChoice`` keywords."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
