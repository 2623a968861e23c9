"""``edgephi bench``: how fast a model is on this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from edgephi.cli.compose import EngineKind, ServiceOptions, resolve_model
from edgephi.cli.options import json_option, service_options
from edgephi.cli.output import ProgressLine, format_bytes, print_json

if TYPE_CHECKING:
    from edgephi.runtime.bench import BenchReport, Spread


@click.command("bench", short_help="Measure a model's speed on this machine.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Length of a prompt.")
@click.option("--output-tokens", type=click.IntRange(min=2), default=64, show_default=True, help="Tokens to generate.")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Runs to take the median of.")
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most prompt tokens in one step.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random prompts.")
@json_option
@service_options
def bench(
    *,
    prompt_tokens: int,
    output_tokens: int,
    repeat: int,
    prefill_chunk: int,
    seed: int,
    as_json: bool,
    service: ServiceOptions,
) -> None:
    """
    Measure loading time, prompt and decoding speed, time to first token, memory, and how much of its bandwidth is used.

    One request runs alone in this process; prompts are random token ids, for speed does not depend on their meaning.
    Numbers are medians over the runs, with the smallest and the largest. Other work on the machine slows it down.

    \b
    Examples:
      edgephi bench
      edgephi bench --model phi3-mini-4k --repeat 5 --json
    """  # noqa: D301 - the backspace is click's mark for lines to leave alone
    if service.engine is EngineKind.FAKE:
        raise click.UsageError("--engine fake computes nothing; there is nothing to measure")
    from edgephi.runtime.bench import BenchOptions, measure_model
    from edgephi.runtime.model import RuntimeOptions

    source = resolve_model(service.model)
    options = BenchOptions(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        repeat=repeat,
        prefill_chunk_tokens=prefill_chunk,
        seed=seed,
    )
    runtime = RuntimeOptions(
        level=service.level, kv_dtype=service.kv_dtype, kv_tokens=service.kv_tokens, threads=service.threads
    )
    with ProgressLine() as progress:
        report = measure_model(source.path, runtime, options, progress=progress)
    if as_json:
        print_json({"model": source.name, **dataclasses.asdict(report)})
    else:
        _print_report(source.name, report)


def _print_report(name: str, report: BenchReport) -> None:
    memory = report.memory
    threads = f"{report.threads} thread{'' if report.threads == 1 else 's'}"
    compiled = "" if report.compile_s is None else f" (compiled first in {report.compile_s:.1f} s)"
    click.echo(f"{name} {report.quantization}, {report.level}, {threads}, TVM {report.tvm_version}")
    click.echo(
        f"{report.prompt_tokens} random prompt tokens, {report.output_tokens} output tokens, {report.repeat} runs: "
        "median (smallest to largest)"
    )
    click.echo(f"  load          {report.load_s:8.2f} s{compiled}")
    click.echo(f"  prefill       {_spread(report.prefill_tokens_per_s)} tok/s")
    click.echo(f"  decode        {_spread(report.decode_tokens_per_s)} tok/s")
    click.echo(f"  first token   {_spread(report.time_to_first_token_s, scale=1000)} ms")
    click.echo(f"  memory read   {_spread(report.stream_bytes_per_s, scale=1e-9)} GB/s, streaming, beside these runs")
    click.echo(
        f"  decode reads  {_spread(report.decode_share_of_stream, scale=100)} % of that: "
        f"{report.decode_bytes_per_token / 1e9:.3f} GB a token"
    )
    click.echo(
        f"  memory        peak {format_bytes(memory.peak_resident_bytes)}: private "
        f"{format_bytes(memory.private_resident_bytes)}, file-backed {format_bytes(memory.file_resident_bytes)}"
    )


def _spread(spread: Spread, *, scale: float = 1.0) -> str:
    return f"{spread.median * scale:8.1f} ({spread.min * scale:.1f} to {spread.max * scale:.1f})"
