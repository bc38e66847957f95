"""Ops as torch operators ``torch.ops.activefreq.*``: one node each to `torch.compile` and `torch.export`."""

from collections.abc import Callable
from typing import Any

import torch


def define(
    name: str, run: Callable[..., Any], fake: Callable[..., Any], writes: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Register ``activefreq::name`` for all devices and return it.

    This does what `torch.library.custom_op` does; but the first call of that imports the compiler, which would cost the
    first click a second.

    Args:
        run: annotated with the types that `torch.library.infer_schema` reads; returns new tensors, or None.
        fake: takes the same arguments; returns empty tensors of the sizes and dtypes that `run` returns.
        writes: names of the arguments that `run` writes to.  `run` itself must tell autograd about it, by
            `torch.autograd.graph.increment_version`.
    """
    torch.library.define(f"activefreq::{name}", torch.library.infer_schema(run, mutates_args=writes))
    torch.library.impl(f"activefreq::{name}", "CompositeExplicitAutograd", run)
    torch.library.register_fake(f"activefreq::{name}", fake)
    return getattr(torch.ops.activefreq, name).default
