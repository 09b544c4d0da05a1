"""`python -m trt_cls` is the command `trt-cls`."""

import sys

if __name__ == "__main__":
    # Python puts the current folder first: a `random.py` lying there would be imported.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    from trt_cls.cli import main

    sys.exit(main())
