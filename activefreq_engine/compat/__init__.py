"""The interface of Segment Anything, answered by this engine: programs that use it need one changed import.

>>> from activefreq_engine.compat import SamPredictor, sam_model_registry

docs/sam.md says what is the same and what is not.
"""

from activefreq_engine.compat.sam import Sam, SAM2ImagePredictor, SamPredictor, build_sam2, sam_model_registry
from activefreq_engine.compat.transforms import ResizeLongestSide

__all__ = ["ResizeLongestSide", "SAM2ImagePredictor", "Sam", "SamPredictor", "build_sam2", "sam_model_registry"]
