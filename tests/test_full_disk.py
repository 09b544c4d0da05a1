"""A full disk is reported in one line, whatever writes and whatever its library raises; existing files stay."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from safetensors import SafetensorError

from support.tiny_models import CONTRACT
from trt_cls.errors import TrtClsError
from trt_cls.files import atomic, write_text
from trt_cls.models import build
from trt_cls.models.checkpoint import save_checkpoint


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the quota is used up"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
    ids=["disk", "quota", "safetensors"],
)
def test_no_room_is_one_line(error: Exception, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(TrtClsError) as failure, atomic(path):
        raise error
    assert str(failure.value).startswith(f"{path}: can't be written, {reason} (")
    assert failure.value.exit_code == 1
    assert "\n" not in str(failure.value)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_without_room_is_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = build(CONTRACT.model, len(CONTRACT.classes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TrtClsError, match=r"model\.safetensors: can't be written, larger than allowed \("):
            save_checkpoint(tmp_path / "model.safetensors", model, CONTRACT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_chain_of_errors_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    error = ValueError("its own cause")
    error.__cause__ = error
    with pytest.raises(ValueError, match="its own cause"), atomic(tmp_path / "file"):
        raise error
