"""Files for programs that serve a model: DeepStream's nvinfer and Triton Inference Server, with a client.

Knows their formats. Does not know: how a model file is made, which is `export`. Begin with `deepstream.py`.
"""
