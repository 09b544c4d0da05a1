from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_unconfigure() -> None:
    """What the loaders' processes shared is forgotten while torch is whole; later each piece complains by itself."""
    if reductions := sys.modules.get("torch.multiprocessing.reductions"):
        reductions.shared_cache.clear()
