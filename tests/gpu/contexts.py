"""pycuda's contexts beside torch's on a GPU, each case in a process of its own: exit status 1 where one goes wrong."""

from __future__ import annotations

import subprocess
import sys

BEGIN = """
import threading
import numpy as np
import torch
from trt_cls.contract import Preprocessing
from trt_cls.preprocessing.cuda import CudaAugmentation, CudaPreprocessing
SIZE = Preprocessing(3, 32, 32, "center", "bilinear", "rgb", 255.0, (0.4,) * 3, (0.2,) * 3)
IMAGE = np.zeros((90, 90, 3), np.uint8)
def used():
    kernel = CudaPreprocessing(SIZE)
    kernel.preprocess([IMAGE])
    return kernel
"""
CASES = {
    "a kernel closed before torch begins": """
used().close()
assert int(torch.ones(9, device="cuda").sum()) == 9
""",
    "torch before fifty kernels": """
ones = torch.ones(9, device="cuda")
for _ in range(50):
    used().close()
assert int((ones + 1).sum()) == 18
""",
    "a kernel closed in another thread": """
before = None
for _ in range(20):
    kernel = used()
    thread = threading.Thread(target=kernel.close)
    thread.start()
    thread.join()
    free = torch.cuda.mem_get_info()[0]
    before = before or free
assert free == before, (free, before)
""",
    "a kernel that is never closed": "kernel = used()",
    "a kernel closed twice": """
kernel = used()
kernel.close()
kernel.close()
""",
    "memory for which there is no room": """
from trt_cls.errors import DeviceError
kernel = used()
hog = torch.empty(torch.cuda.mem_get_info()[0] - (64 << 20), dtype=torch.uint8, device="cuda")
try:
    kernel.preprocess([np.zeros((4000, 4000, 3), np.uint8)] * 16)
    raise AssertionError("there was memory")
except DeviceError:
    pass
del hog
torch.cuda.empty_cache()
kernel.preprocess([IMAGE])
kernel.close()
""",
    "page-locked memory that outlives the kernel of its copies": """
kernel = CudaAugmentation(SIZE)
pinned = torch.ones(1 << 20).pin_memory()
with torch.cuda.stream(torch.cuda.Stream()):
    moved = pinned.to("cuda", non_blocking=True)
kernel.close()
del pinned, moved
torch.cuda.synchronize()
""",
}


def main() -> int:
    wrong = 0
    for name, code in CASES.items():
        done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False)
        right = done.returncode == 0 and not done.stderr.strip()
        wrong += not right
        print("ok   " if right else "WRONG", name, "" if right else (done.returncode, done.stderr[-800:]), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
