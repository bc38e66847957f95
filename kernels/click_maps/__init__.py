"""Click maps: padded point slots -> one map of positive and one of negative disks."""

from .reference import click_maps

__all__ = ["click_maps"]
