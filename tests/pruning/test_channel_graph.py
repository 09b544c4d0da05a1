from __future__ import annotations

import pytest

from trt_cls.pruning.channel_graph import ChannelPart, Channels, aligned, moved, reduced, reshaped

CHANNELS = Channels(1, (ChannelPart("a", 4), ChannelPart(None, 2)))


@pytest.mark.parametrize(
    ("before", "after", "axis", "repeat"),
    [
        ((2, 6, 3, 5), (2, 6, 15), 1, 1),
        ((2, 6, 3, 5), (2, 90), 1, 15),
        ((2, 6, 1, 1), (2, 6), 1, 1),
        ((2, 6), (2, 6, 1, 1), 1, 1),
        ((2, 6), (2, 1, 6), 2, 1),
        ((2, 6, 3, 5), (2, 18, 5), 1, 3),
    ],
)
def test_a_change_of_shape_moves_and_repeats_channels(
    before: tuple[int, ...], after: tuple[int, ...], axis: int, repeat: int
) -> None:
    assert reshaped(CHANNELS, before, after) == Channels(
        axis, (ChannelPart("a", 4, repeat), ChannelPart(None, 2, repeat))
    )


@pytest.mark.parametrize("after", [(2, 2, 3, 3, 5), (12, 3, 5), (2, 3, 30), (180,)])
def test_a_change_of_shape_that_takes_channels_apart_loses_them(after: tuple[int, ...]) -> None:
    assert reshaped(CHANNELS, (2, 6, 3, 5), after) is None


def test_axes_move_and_vanish() -> None:
    assert moved(CHANNELS, (0, 2, 3, 1)).axis == 3
    assert reduced(CHANNELS, (2, 3), kept=False) == CHANNELS
    assert reduced(CHANNELS, (0,), kept=False) == Channels(0, CHANNELS.parts)
    assert reduced(CHANNELS, (0,), kept=True) == CHANNELS
    assert reduced(CHANNELS, (1, 2), kept=True) is None


def test_values_that_meet_have_the_same_parts() -> None:
    other = Channels(1, (ChannelPart("b", 4), ChannelPart("c", 2)))
    shape = (2, 6, 3, 5)
    assert aligned([CHANNELS, other], [shape, (2, 6, 1, 1)], 4) == [CHANNELS, other]
    assert aligned([CHANNELS, Channels(1, (ChannelPart("b", 3), ChannelPart("c", 3)))], [shape, shape], 4) is None
    assert aligned([CHANNELS, Channels(3, other.parts)], [shape, (2, 1, 1, 6)], 4) is None


@pytest.mark.parametrize("shape", [(6, 1, 1), (2, 6, 3, 5)])
def test_what_meets_channels_of_another_origin_is_known_to(shape: tuple[int, ...]) -> None:
    values = aligned([CHANNELS, None], [(2, 6, 3, 5), shape], 4)
    assert values == [CHANNELS, Channels(1, (ChannelPart(None, 4), ChannelPart(None, 2)))]


@pytest.mark.parametrize("shape", [(2, 1, 3, 5), (5,), ()])
def test_a_single_channel_meets_all_others(shape: tuple[int, ...]) -> None:
    values = aligned([CHANNELS, None], [(2, 6, 3, 5), shape], 4)
    assert values == [CHANNELS, Channels(1, (ChannelPart(None, 1),))]
