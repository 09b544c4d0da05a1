"""Evaluation: metrics, predictions for images and videos, comparison of two models, benchmark, results and reports.

Knows labels, metrics and result files. Does not know: how an engine runs. Begin with `evaluate.py`: `predict` runs any
engine on images, `evaluate` adds the metrics.
"""
