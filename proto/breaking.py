"""
Compare the contract with the last release: ``buf breaking`` against the newest tag that has one.

Before the first release there is nothing to keep, and this says so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the check; return its exit status."""
    tags = _git("tag", "--list", "v*", "--sort=-v:refname").split()
    released = next((tag for tag in tags if _git("ls-tree", tag, "proto/edgephi/v1")), None)
    if released is None:
        sys.stdout.write("no released contract yet; nothing to break\n")
        return 0
    buf = Path(sys.executable).parent / "buf"
    against = f"{ROOT / '.git'}#tag={released},subdir=proto"
    return subprocess.run([buf, "breaking", "--against", against], cwd=ROOT / "proto", check=False).returncode  # noqa: S603


def _git(*arguments: str) -> str:
    return subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607 - the developer's own git
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
