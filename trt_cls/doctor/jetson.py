"""Which Jetson this is, by the files that NVIDIA's Linux for Tegra keeps.

Does not know: what is installed on it, see `facts`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

JETPACKS = {34: 5, 35: 5, 36: 6, 38: 7}
"""Major version of Linux for Tegra → JetPack."""
MOST = 1 << 16
"""Bytes of a file that are looked at."""


@dataclass(frozen=True)
class Jetson:
    """One board."""

    model: str
    release: str
    """Of Linux for Tegra, as in "36.4.3"; empty where it is not known."""
    power_mode: str
    """The name that nvpmodel gives it, as in "MAXN"; empty where it is not known."""

    @property
    def jetpack(self) -> int | None:
        """The major version; None for a release that is not known here."""
        return JETPACKS.get(int(self.release.partition(".")[0] or 0))


def jetson(root: Path = Path("/")) -> Jetson | None:
    """The board whose file system begins at `root`; None where it is none."""
    model = _text(root / "proc/device-tree/model").rstrip("\0").strip()
    tegra = _text(root / "etc/nv_tegra_release")
    if not tegra and not re.search(r"\bJetson\b", model):
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", tegra)
    return Jetson(model or "NVIDIA Jetson", f"{found[1]}.{found[2]}" if found else "", _power_mode(root))


def _power_mode(root: Path) -> str:
    number = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if number is None:
        return ""
    modes = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf"))
    return next((name for mode, name in modes if int(mode) == int(number[1])), f"mode {int(number[1])}")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST).decode(errors="replace")
    except OSError:
        return ""
