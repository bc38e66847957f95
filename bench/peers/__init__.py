"""Ours beside other click segmenters."""
