"""Prints how large the package is: files, lines, longest module."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "trt_cls"


def main() -> None:
    lines = {
        path.relative_to(PACKAGE.parent): len(path.read_text().splitlines()) for path in sorted(PACKAGE.rglob("*.py"))
    }
    rooms: dict[str, list[int]] = {}
    for path, count in lines.items():
        rooms.setdefault(path.parts[1] if len(path.parts) > 2 else "(ground floor)", []).append(count)
    for room, counts in sorted(rooms.items()):
        print(f"{room:16} {len(counts):3} files {sum(counts):6} lines")
    longest = max(lines, key=lines.__getitem__)
    print(f"{'total':16} {len(lines):3} files {sum(lines.values()):6} lines; longest: {longest} ({lines[longest]})")


if __name__ == "__main__":
    main()
