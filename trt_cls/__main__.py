"""`python -m trt_cls` is the command `trt-cls`."""

import sys

from trt_cls.cli import main

if __name__ == "__main__":
    sys.exit(main())
