"""Picture input: anything a user has in hand -> 8-bit grey or RGB, or an error that says what is wrong with it.

Sessions, evaluation and training all read pictures and label maps here, so a file means the same pixels everywhere.
docs/pictures.md lists what is read and how.
"""

from activefreq_engine.images.load import (
    MAX_PIXELS,
    as_array,
    check_window,
    image_digest,
    image_size,
    load_image,
    load_labels,
    load_values,
)
from activefreq_engine.images.slides import Slide
from activefreq_engine.images.volumes import Volume, load_volume
from activefreq_engine.images.window import Window

__all__ = [
    "MAX_PIXELS",
    "Slide",
    "Volume",
    "Window",
    "as_array",
    "check_window",
    "image_digest",
    "image_size",
    "load_image",
    "load_labels",
    "load_values",
    "load_volume",
]
