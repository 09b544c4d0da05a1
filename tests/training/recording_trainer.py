"""`trt-cls ARGUMENTS` whose learner writes each step to RECORD.<process>, and fails in the step named by FAIL."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from trt_cls.cli import main
from trt_cls.data.loader import TrainingBatch
from trt_cls.errors import TrtClsError
from trt_cls.training import learner, run

RANK = os.environ.get("RANK", "0")
RECORD = Path(f"{os.environ['RECORD']}.{RANK}")


class RecordingLearner(learner.Learner):
    def step(self, batch: TrainingBatch, number: int, rate: float, **more: bool) -> None:
        if os.environ.get("FAIL") == f"{RANK}/{number}":
            raise TrtClsError(f"this is the failure of process {RANK}")
        before = self._sums.clone()
        super().step(batch, number, rate, **more)
        loss, _, images, _ = (self._sums - before).tolist()
        seen = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
        with RECORD.open("a") as file:
            print(json.dumps({"step": number, "loss": loss, "images": images, "rate": rate, "seen": seen}), file=file)


run.Learner = RecordingLearner  # type: ignore[misc]
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
