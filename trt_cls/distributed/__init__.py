"""Several processes that work together: how they start, find each other, share work and end.

Does not know: networks and images. Begin with `processes.joined`; `launch.py` starts processes, `failure.py` ends them.
"""
