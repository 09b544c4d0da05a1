"""Checkpoint → ONNX → precision → engine, each held against the network before it gets its name."""
