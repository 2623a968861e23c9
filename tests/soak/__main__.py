"""
A server asked for everything at once, for long: ``python -m tests.soak --rpcs 100000 --channels 10000``.

A random mix of calls (tests/soak/mix.py) meets a server process with the fake engine. Every end must be explained, and
nothing may grow (tests/soak/watch.py). Prints Markdown; the exit status is 1 when one of the two is not so. ``--leak``
is the negative control, which must end with 1.

The front's memory settles after some 50,000 calls, 16 MB higher, while no object is kept: a run of more than 10,000
whose second half begins sooner complains of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.soak.mix import Mix, Tally
from tests.soak.watch import MAX_BYTES_PER_CALL, NOISE_BYTES, Rest, Sample, Watch, growth, judge

ROOT = Path(__file__).parents[2]
KV_TOKENS = 64 << 10
SERVE = (
    *("--engine", "fake", "--max-running", "64", "--max-waiting", "128", "--max-waiting-per-client", "128"),
    *("--prefill-chunk", "80", "--mixed-chunk", "80", "--kv-tokens", str(KV_TOKENS)),
)
_START_TIMEOUT_S = 60.0


@contextlib.contextmanager
def serving(*, leak: bool) -> Iterator[tuple[subprocess.Popen[str], dict[str, str | int], str]]:
    """Run the server; yields its process, what it said when it was ready, and a token."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.json"
        edgephi = Path(sysconfig.get_path("scripts")) / "edgephi"
        add = [str(edgephi), "token", "add", "soak", "--tokens", str(file), "--json"]
        token = json.loads(subprocess.check_output(add, timeout=_START_TIMEOUT_S))["token"]
        command = [sys.executable, "-m", "tests.soak.server", *(["--leak"] if leak else []), *SERVE]
        command += ["--tokens", str(file), "--port", "0", "--metrics-port", "0", "--json", "--log-level", "warning"]
        with (Path(folder) / "log").open("w+") as log:
            server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                assert server.stdout is not None
                line = server.stdout.readline()
                if not line:
                    log.seek(0)
                    raise SystemExit(f"the server did not start: {log.read()}")
                yield server, json.loads(line), token
            finally:
                server.terminate()
                server.communicate(timeout=_START_TIMEOUT_S)
                log.seek(0)
                print(log.read()[-4000:], file=sys.stderr, end="")


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """A run: its calls, and the server before, during and after it."""

    seconds: float
    tally: Tally
    before: Rest
    after: Rest
    samples: Sequence[Sample]
    status: int

    def complaints(self) -> list[str]:
        """Everything that is wrong, in words."""
        found = [f"{count} x {text}" for text, count in Counter(self.tally.unexplained).most_common(20)]
        found += judge(self.before, self.after, self.samples, self.tally.num_done)
        if self.status != 0:
            found.append(f"the server ended with status {self.status}")
        return found


async def soak(options: argparse.Namespace) -> Soaked:
    """Warm a server up, ask it everything, and let it rest."""
    with serving(leak=options.leak) as (server, ready, token):
        address = str(ready["address"])
        warm_up = Mix(address, token, seed=options.seed)
        await warm_up.fill_pools()
        await warm_up.run(options.rpcs // 10, options.channels // 10, num_workers=options.workers)
        watch = Watch(int(ready["pid"]), int(ready["metrics_port"]))
        before = await watch.rest(None, options.settle)
        mix = Mix(address, token, seed=options.seed + 1)
        sampling = asyncio.create_task(watch.sample(lambda: mix.tally.num_done))
        began_at = time.monotonic()
        await mix.run(options.rpcs, options.channels, num_workers=options.workers)
        seconds = time.monotonic() - began_at
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling
        after = await watch.rest(before, options.settle)
    return Soaked(
        seconds=seconds,
        tally=mix.tally,
        before=before,
        after=after,
        samples=watch.samples,
        status=server.returncode,
    )


def report(soaked: Soaked) -> str:
    """Return the summary in Markdown."""
    tally, before, after = soaked.tally, soaked.before, soaked.after
    lines = [
        f"{tally.num_done} calls in {soaked.seconds:.0f} s ({tally.num_done / soaked.seconds:.0f}/s), "
        f"{len(tally.unexplained)} unexplained.",
        "",
        "| calls | ends |",
        "|---|---|",
    ]
    for name, codes in sorted(tally.counts.items()):
        lines.append(f"| {name} | {', '.join(f'{code} {count}' for code, count in sorted(codes.items()))} |")
    lines += ["", "| at rest | after warm-up | at the end |", "|---|---|---|"]
    for name in ("front", "engine"):
        then, now = getattr(before, name), getattr(after, name)
        lines.append(f"| {name}: memory MB | {then.rss_bytes / 1e6:.1f} | {now.rss_bytes / 1e6:.1f} |")
        lines.append(f"| {name}: descriptors | {then.descriptors} | {now.descriptors} |")
        lines.append(f"| {name}: threads | {then.threads} | {now.threads} |")
    lines += [f"| {name} | {before.gauges[name]:g} | {after.gauges[name]:g} |" for name in before.gauges]
    lines.append(f"| Python objects of the front | {before.objects:.0f} | {after.objects:.0f} |")
    lines.append("")
    for name in ("front", "engine"):
        grown = growth([(sample.num_calls, getattr(sample, name).rss_bytes) for sample in soaked.samples])
        peak = max(getattr(sample, name).rss_bytes for sample in soaked.samples)
        lines.append(
            f"Memory of the {name} under load: at most {peak / 1e6:.1f} MB; in the second half "
            f"{grown.bytes_per_call:+.1f} bytes a call, {grown.total_bytes / 1e6:+.2f} MB in all "
            f"(a leak beyond {MAX_BYTES_PER_CALL} bytes a call and {NOISE_BYTES / 1e6:.1f} MB)."
        )
    return "\n".join(lines)


def main() -> None:
    """Soak, print what came of it, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--rpcs", type=int, default=100_000, help="calls over lasting connections")
    parser.add_argument("--channels", type=int, default=10_000, help="new connections, each for one call")
    parser.add_argument("--workers", type=int, default=80, help="calls at once")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds to wait for rest at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leak", action="store_true", help="the control: a server that leaks")
    options = parser.parse_args()
    soaked = asyncio.run(soak(options))
    print(report(soaked))
    found = soaked.complaints()
    print("\n" + "\n".join(f"- {text}" for text in found) if found else "\nnothing is unexplained, nothing has grown")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
