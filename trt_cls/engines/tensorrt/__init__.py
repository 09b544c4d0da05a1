"""TensorRT engines on an NVIDIA GPU: bindings (`api`), buffers and CUDA graphs, the engine, the pipeline on the GPU.

Does not know: how a plan is built, which is `export/tensorrt.py`. Begin with `engine.py`.
"""
