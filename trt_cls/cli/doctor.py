"""`trt-cls doctor`: what this machine can run, and how to install or fix the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from trt_cls.cli.options import common_options
from trt_cls.errors import TrtClsError
from trt_cls.terminal import echo
from trt_cls.text import printable

MARKS = {"ok": click.style("ok", fg="green"), "absent": "–", "broken": click.style("broken", fg="red")}
WIDTH = 6
"""Length of the longest mark."""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@common_options
def command(as_json: bool) -> None:
    """Check what this machine can run, and how to install or fix the rest.

    Exit status 0: everything that is installed works together; 1: something is broken. What is absent is not an error.
    """
    from trt_cls.doctor.checks import findings
    from trt_cls.doctor.facts import find_out

    found = findings(find_out())
    if as_json:
        echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            padding = " " * (WIDTH - len(click.unstyle(MARKS[finding.state])))
            line = f"{MARKS[finding.state]}{padding}  {finding.name:{width}}  {printable(finding.found)}"
            click.echo(line)  # noqa: TID251  its colors are escapes
            if finding.fix:
                echo(f"{'':{WIDTH + width + 4}}→ {finding.fix}")
    broken = [finding.name for finding in found if finding.state == "broken"]
    if broken:
        raise TrtClsError(
            f"some installed packages do not work together: {', '.join(broken)}; run the commands after the arrows"
        )
