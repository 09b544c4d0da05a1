"""One small interface (open, infer, close) over all libraries that run model files.

Does not know: where images come from, and what answers are for. Begin with `backends.py`, the table of engines, and
`engine.py`, what each of them does; `classifier.py` takes images of any kind.
"""

from trt_cls.engines.backends import open_engine as open_engine
