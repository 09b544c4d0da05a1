"""One small interface, open, infer, close, over ONNX Runtime, TensorRT and torch.

`open_engine` picks the engine by the file's suffix, `contracts.read_contract` reads what a file says of itself,
`classifier.load_classifier` takes images of any kind. Nothing here imports torch, ONNX Runtime or TensorRT before a
file of that kind is opened.
"""

from trt_cls.engines.engine import Engine as Engine
from trt_cls.engines.engine import open_engine as open_engine
