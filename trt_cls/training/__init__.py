"""Training: from a spec and two folders of images to checkpoints, curves and logs.

Knows PyTorch, the optimizers, several processes and resuming. Does not know: other formats of models. Begin with
`run.train`, then `loop`; a step is in `learner`.
"""
