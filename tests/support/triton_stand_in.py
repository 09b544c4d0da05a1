"""An HTTP server that answers for one model of a Triton repository as Triton does, and runs it in ONNX Runtime.

It speaks the part of the KServe v2 protocol that image classification needs, with the extension for binary tensors.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

HEADER_LENGTH = "Inference-Header-Content-Length"


def read_config(model: Path) -> Any:
    """config.pbtxt of the model folder as a message of Triton's own schema."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


@contextmanager
def serve(model: Path) -> Iterator[tuple[str, list[int]]]:
    """Serves the model folder; yields HOST:PORT and a list that the batch size of each request is appended to."""
    import onnxruntime
    from google.protobuf.json_format import MessageToDict
    from tritonclient.grpc.model_config_pb2 import DataType

    config = read_config(model)
    options = onnxruntime.SessionOptions()
    if config.optimization.graph.level == 2:  # as Triton's backend has it
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model / "1" / config.default_model_filename, options, providers=["CPUExecutionProvider"]
    )
    batches: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == f"/v2/models/{config.name}/config", self.path
            self.reply(json.dumps(MessageToDict(config, preserving_proto_field_name=True)).encode())

        def do_POST(self) -> None:
            assert self.path == f"/v2/models/{config.name}/infer", self.path
            body = self.rfile.read(int(self.headers["Content-Length"]))
            split = int(self.headers[HEADER_LENGTH])
            (given,), (asked,) = (json.loads(body[:split])[key] for key in ("inputs", "outputs"))
            data_type = {"FP32": np.float32, "UINT8": np.uint8}[given["datatype"]]
            images = np.frombuffer(body[split:], data_type).reshape(given["shape"])
            assert given["name"] == config.input[0].name
            assert f"TYPE_{given['datatype']}" == DataType.Name(config.input[0].data_type)
            assert list(images.shape[1:]) == list(config.input[0].dims)
            assert len(images) <= config.max_batch_size
            batches.append(len(images))
            (answers,) = session.run([asked["name"]], {given["name"]: images})
            described = {
                "name": asked["name"], "datatype": "FP32", "shape": list(answers.shape),
                "parameters": {"binary_data_size": answers.nbytes},
            }  # fmt: skip
            header = json.dumps({"model_name": config.name, "model_version": "1", "outputs": [described]}).encode()
            self.reply(header + answers.tobytes(), {HEADER_LENGTH: str(len(header))})

        def reply(self, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *given: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", batches
        finally:
            server.shutdown()
            thread.join()
