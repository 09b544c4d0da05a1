"""Checkpoint → ONNX → precision → engine; each file is compared with the network before it gets its name.

Knows graphs, precisions and TensorRT's builder. Does not know: how files are run (`engines`) or served (`serving`).
Begin with `export.py`.
"""
