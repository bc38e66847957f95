"""Plans: a model compiled for the network shapes in use.  `plan.py` says what is in one, `layers.py` how it runs."""

from activefreq_engine.runtime.plan.plan import PRECISIONS, Folded, Plan

__all__ = ["PRECISIONS", "Folded", "Plan"]
