"""Parts of a spec's dataclasses: fields with help and allowed values, blocks of which exactly one field is set."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any

from trt_cls.spec.allowed import ANYTHING, Allowed


def option(default: Any, description: str, allowed: Allowed = ANYTHING, *, secret: bool = False) -> Any:
    """A field with a default; a callable default is a factory.

    The value of a `secret` field is neither shown in messages nor written to a results folder.
    """
    given: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    if default is MISSING:
        given = {}
    return field(**given, repr=not secret, metadata={"help": description, "allowed": allowed, "secret": secret})


def required(description: str, allowed: Allowed = ANYTHING) -> Any:
    """A field that the spec must give."""
    return option(MISSING, description, allowed)


class ExactlyOne:
    """Base of the blocks of which a spec sets exactly one field."""
