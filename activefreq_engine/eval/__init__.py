"""Evaluation with robot clickers: the standard protocol (docs/protocol.md) on a folder of images with truth.

>>> from activefreq_engine.eval import evaluate, load_dataset
>>> report = evaluate(load_dataset("data/val"), clicker="ritm")    # doctest: +SKIP
>>> report.metrics()["noc90"]                                      # doctest: +SKIP
"""

from activefreq_engine.eval.clickers import RobotClicker, list_clickers, make_clicker
from activefreq_engine.eval.datasets import Dataset, Sample, load_dataset
from activefreq_engine.eval.report import (
    Report,
    SampleResult,
    Settings,
    merge,
    plot,
    read_json,
    to_markdown,
    write_json,
)
from activefreq_engine.eval.runner import Predictor, evaluate

__all__ = [
    "Dataset",
    "Predictor",
    "Report",
    "RobotClicker",
    "Sample",
    "SampleResult",
    "Settings",
    "evaluate",
    "list_clickers",
    "load_dataset",
    "make_clicker",
    "merge",
    "plot",
    "read_json",
    "to_markdown",
    "write_json",
]
