"""The session: clicks in, masks out.  It knows images, canvases and histories; tensors are the engine's."""

from activefreq_engine.session.session import Session, click_batch

__all__ = ["Session", "click_batch"]
