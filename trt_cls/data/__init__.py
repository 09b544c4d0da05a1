"""Image folders and the batches that training and evaluation read from them.

Knows files, augmentation and worker processes. Does not know: networks, devices. Begin with `folder`, then `stream`
(evaluation) or `loader` (training).
"""
