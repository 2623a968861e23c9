"""
How commands end: exit codes, and errors as one line instead of a traceback.

    0 done    1 failed    2 the command line is wrong    130 interrupted with Ctrl-C
"""

from __future__ import annotations

import errno
import os
from typing import Any

import click

from edgephi.errors import EdgephiError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
DEBUG_ENV = "EDGEPHI_DEBUG"


class EdgephiGroup(click.Group):
    """The root group: turns edgephi's errors into ``error: message`` and Ctrl-C into exit status 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and end the process as the module says."""
        try:
            return super().invoke(ctx)
        except EdgephiError as error:
            if os.environ.get(DEBUG_ENV) == "1":
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(EXIT_FAILED)
        except OSError as error:
            # A file or a folder that cannot be used; a closed pipe is click's to handle.
            if os.environ.get(DEBUG_ENV) == "1" or error.errno == errno.EPIPE or error.filename is None:
                raise
            click.echo(f"error: {error.filename}: {error.strerror}", err=True)
            ctx.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
