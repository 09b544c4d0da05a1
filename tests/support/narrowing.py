"""ResNets and SqueezeNets with an eighth of the channels, for tests of what is not the network."""

from __future__ import annotations

import functools
from typing import Any


def narrowed(real: Any) -> Any:
    """`Builder.conv` with fewer filters."""

    @functools.wraps(real)
    def conv(self: Any, x: Any, name: str, filters: int, *given: Any, **options: Any) -> Any:
        wide = self.config.arch in ("resnet", "squeezenet") and filters >= 64
        return real(self, x, name, filters // 8 if wide else filters, *given, **options)

    return conv
