"""The decision among recorded measurements: within the limits, on the Pareto front, each loss with its reason."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from trt_cls.choice.decision import Limits, Measured, decide
from trt_cls.choice.page import choice_page
from trt_cls.choice.table import COLUMNS, markdown, read_rows, write_rows
from trt_cls.errors import DataError


def row(name: str, top1: float, p99: float, size: int, provider: str = "cpu", **others: object) -> Measured:
    values: dict[str, object] = {
        "path": f"{name}.onnx",
        "top1_low": max(top1 - 0.02, 0.0),
        "top1_high": min(top1 + 0.02, 1.0),
        "mcnemar_p": 0.4,
        "ece": 0.03,
        "share8": 0.0,
        "plan_bytes": None,
        "p50_ms": 0.8 * p99,
        "ips": 1e3 / p99,
    }
    values.update(others)
    return Measured(name=name, provider=provider, top1=top1, p99_ms=p99, bytes=size, **values)  # type: ignore[arg-type]


# resnet18 at 64×64 of benchmarks/results/int8.csv, with sizes of its files; int8-bad is planted
RECORDED = [
    row("fp32", 0.8065, 3.1, 44_700_000),
    row("fp32", 0.8065, 2.9, 44_700_000, "openvino"),
    row("fp16", 0.8060, 2.4, 22_400_000),
    row("fp16", 0.8065, 2.9, 22_400_000, "openvino"),
    row("int8", 0.8035, 6.0, 22_600_000, share8=1.0),
    row("int8", 0.8040, 0.9, 22_600_000, "openvino", share8=1.0),
    row("auto", 0.8060, 1.1, 22_600_000, "openvino", share8=0.93),
    row("half-int8", 0.7950, 0.5, 9_100_000, "openvino", share8=1.0),
    row("int8-bad", 0.1, 0.1, 1_000_000, "openvino", share8=1.0),
]


def kept(found: Measured, limits: Limits) -> bool:
    reference = next(other for other in RECORDED if (other.name, other.provider) == ("fp32", found.provider))
    return (
        100 * (reference.top1 - found.top1) <= limits.max_loss + 1e-6
        and (limits.max_latency is None or found.p99_ms <= limits.max_latency)
        and (limits.max_bytes is None or found.bytes <= limits.max_bytes)
    )


def test_the_choice_keeps_all_limits_and_is_never_dominated() -> None:
    draw = random.Random(0)
    chosen = set()
    for _ in range(200):
        limits = Limits(
            draw.choice([0.0, 0.1, 0.5, draw.uniform(0, 3)]),
            draw.choice([None, draw.uniform(0.2, 7)]),
            draw.choice([None, draw.randrange(5_000_000, 50_000_000)]),
        )
        provider = draw.choice(["auto", "cpu", "openvino"])
        decision = decide(RECORDED, limits, provider)
        able = [one for one in RECORDED if provider in ("auto", one.provider) and kept(one, limits)]
        assert (decision.chosen is None) == (not able)
        if decision.chosen is None:
            assert "more than --max-" in decision.failure
            continue
        best = decision.chosen
        assert best in able
        for other in able:
            better = (other.top1 >= best.top1, other.p99_ms <= best.p99_ms, other.bytes <= best.bytes)
            same = (other.top1, other.p99_ms, other.bytes) == (best.top1, best.p99_ms, best.bytes)
            assert same or not all(better)
        chosen.add(best.label)
    assert len(chosen) > 4  # the limits decide


def test_a_bad_int8_is_rejected_with_its_loss() -> None:
    decision = decide(RECORDED, Limits())
    assert decision.chosen is not None
    assert decision.chosen.label == "int8 on openvino"
    reasons = dict(zip((one.label for one in decision.rows), decision.reasons, strict=True))
    assert reasons["int8-bad on openvino"].startswith("loses 70.65 points of top-1, 70.2 more than --max-loss allows")
    assert reasons["auto on openvino"].startswith("keeps the limits, and is slower: 1.10 ms, not 0.90")


def test_where_none_fits_the_nearest_is_named_with_what_it_exceeds_by_how_much() -> None:
    decision = decide(RECORDED, Limits(0.5, 0.6))
    assert decision.chosen is None
    assert decision.failure == (
        "int8 on openvino comes nearest, but takes 0.90 ms at the 99th percentile, 0.3 more than --max-latency allows"
    )
    assert not decide([row("fp32", math.nan, 1, 1)], Limits()).chosen


def test_the_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "choose.csv", RECORDED)
    header = "name,path,provider,top1,top1_low,top1_high,mcnemar_p,ece,share8,bytes,plan_bytes,p50_ms,p99_ms,ips"
    assert (tmp_path / "choose.csv").read_text().splitlines()[0] == header == ",".join(COLUMNS)
    for read, written in zip(read_rows(tmp_path / "choose.csv"), RECORDED, strict=True):
        assert read.merits == pytest.approx(written.merits)
        assert (read.label, read.path, read.plan_bytes) == (written.label, written.path, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.8065", "80.65", r'choose.csv:2: top1 is "80.65"; expected a share from 0 to 1'),
        ("44700000", "", r'choose.csv:2: bytes is ""; expected a number above 0'),
        ("p99_ms", "p99", "column p99_ms is missing"),
        ("fp32", "plain", "no row is named fp32"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "choose.csv"
    write_rows(path, RECORDED[:2])
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_numbers_of_points_that_nearly_coincide_stay_apart() -> None:
    crowd = [row("fp32", 0.8, 20, 100), *(row(f"v{n}", 0.1, 20 + 3 * n, 100) for n in range(12))]
    text = choice_page(decide(crowd, Limits()), crowd, Limits(), [], "model")
    found = re.findall(r'<circle cx="(.*?)" cy="(.*?)" r="4"/><text x="(.*?)" y="(.*?)" ', text)
    assert len(found) == len(crowd)
    numbers = [(float(x), float(y)) for _, _, x, y in found]
    for place, (x, y) in enumerate(numbers):
        assert all(abs(x - left) >= 12 or abs(y - top) >= 9 for left, top in numbers[:place])
        assert y < 187, "the axis has its numbers there"


def test_the_reports_say_the_choice_and_each_reason() -> None:
    limits = Limits(0.5, 5.0, 30_000_000)
    decision = decide(RECORDED, limits)
    text = choice_page(decision, RECORDED, limits, ["fp8: refused"], "model")
    table = markdown(decision, RECORDED, ["fp8: refused"])
    assert "<strong>int8 on openvino: the fastest within the limits</strong>" in text
    for reason in (*decision.reasons, "fp8: refused"):
        assert reason in text
        assert reason in table
    failed = decide(RECORDED, Limits(0.5, 0.1))
    assert "No variant fits" in choice_page(failed, RECORDED, Limits(0.5, 0.1), [], "model")
    assert text.count("<circle") == len(RECORDED)


def test_the_terminal_cuts_no_number_at_80_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_cls.cli.choose import _print

    monkeypatch.setenv("COLUMNS", "80")
    rows = [*RECORDED, row("narrow-fp32", 0.52, 12.3, 18_900_000, "openvino", mcnemar_p=1.2e-5)]
    _print(decide(rows, Limits(0.5)), rows, [])
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert lines[2 + len(RECORDED)].split() == [
        *("narrow-fp32", "openvino", "52.00%", "+28.65", "1.2e-05", "0%", "18.90", "12.30", "81")
    ]


def test_a_variant_that_fails_by_far_leaves_the_others_their_room_in_the_chart() -> None:
    heights = re.findall(
        r'cy="([\d.]+)"', choice_page(decide(RECORDED, Limits(0.5)), RECORDED, Limits(0.5), [], "model")
    )
    assert max(map(float, heights)) == 180.0
    assert float(heights[5]) - float(heights[0]) > 10, "a quarter of a point"
