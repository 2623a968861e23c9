"""
Writes the table of metrics in observability.md: ``python docs/generate.py``, or ``--check`` to compare only.

Owns the table's form. What is in it comes from the server's own registry.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from edgephi.server.metrics import Metrics

TARGET = Path(__file__).with_name("observability.md")
BEGIN = "<!-- metrics: written by `make observability` -->\n"
END = "<!-- end of metrics -->\n"


def table() -> str:
    """Return the table of every metric that a server reports."""
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.text} |\n"
        for family in sorted(Metrics(CollectorRegistry(), model="").families(), key=lambda family: family.name)
    ]
    return "| name | kind | labels | what it is |\n|---|---|---|---|\n" + "".join(rows)


def main() -> int:
    """Write the table, or with ``--check`` say whether the document has the one that would be written."""
    text = TARGET.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin, f"{TARGET.name} has no {BEGIN!r}"
    assert end, f"{TARGET.name} has no {END!r}"
    fresh = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if sys.argv[1:] == ["--check"]:
        if fresh != text:
            print(f"{TARGET.name} is stale; run: make observability", file=sys.stderr)
        return int(fresh != text)
    TARGET.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
