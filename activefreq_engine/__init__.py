"""Click-based interactive image segmentation: FreqFormer, AcSelect and the session that holds them together.

>>> from activefreq_engine import Session
>>> with Session() as s:                     # doctest: +SKIP
...     s.set_image("photo.jpg")
...     mask = s.click(120, 80).mask
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if (_file := Path(__file__).resolve().parents[1] / "kernels" / "__init__.py").is_file() and (
    not Path(__file__).with_name("kernels").is_dir()
):
    # A checkout: `python` was started at its root, or it is installed as editable.  There the folder lies beside this
    # package and not in it.  Left to itself, Python may find none, or that of another checkout that is installed.
    _spec = spec_from_file_location("activefreq_engine.kernels", _file)
    assert _spec is not None
    assert _spec.loader is not None
    kernels = sys.modules["activefreq_engine.kernels"] = module_from_spec(_spec)
    _spec.loader.exec_module(kernels)
elif find_spec("activefreq_engine.kernels") is None:
    raise ModuleNotFoundError(
        f"activefreq_engine.kernels is missing: it is neither installed nor is there {_file}. Run 'pip install .' "
        "in the root of a complete checkout.",
        name="activefreq_engine.kernels",
    )

from activefreq_engine.errors import (
    ActiveFreqError,
    BackendUnavailableError,
    ClickCancelledError,
    DatasetError,
    FileWriteError,
    InvalidArgumentError,
    InvalidClickError,
    InvalidImageError,
    InvalidMaskError,
    InvalidPromptError,
    MemoryShortageError,
    ModelLoadError,
    NoImageError,
    SessionBusyError,
    SessionClosedError,
    SessionStateError,
)
from activefreq_engine.types import BoxPrompt, Click, ClickResult, Lasso, Scribble, Suggestion

if TYPE_CHECKING:
    from activefreq_engine.acselect import AcSelect
    from activefreq_engine.models import create_model, list_models
    from activefreq_engine.runtime.engine import Engine
    from activefreq_engine.session import Session, click_batch

# Resolved on first use, so that `import activefreq_engine` stays quick.
_LAZY = {
    "Session": "activefreq_engine.session",
    "click_batch": "activefreq_engine.session",
    "Engine": "activefreq_engine.runtime.engine",
    "AcSelect": "activefreq_engine.acselect",
    "create_model": "activefreq_engine.models",
    "list_models": "activefreq_engine.models",
}

__all__ = [
    "AcSelect",
    "ActiveFreqError",
    "BackendUnavailableError",
    "BoxPrompt",
    "Click",
    "ClickCancelledError",
    "ClickResult",
    "DatasetError",
    "Engine",
    "FileWriteError",
    "InvalidArgumentError",
    "InvalidClickError",
    "InvalidImageError",
    "InvalidMaskError",
    "InvalidPromptError",
    "Lasso",
    "MemoryShortageError",
    "ModelLoadError",
    "NoImageError",
    "Scribble",
    "Session",
    "SessionBusyError",
    "SessionClosedError",
    "SessionStateError",
    "Suggestion",
    "__version__",
    "click_batch",
    "create_model",
    "list_models",
]


def _require_a_folder() -> None:
    """Where the current folder was deleted, MKL ends the process while torch is loaded; this raises before it can.

    Raises:
        BackendUnavailableError: there is no current folder, and torch is not loaded yet.
    """
    if "torch" in sys.modules:
        return
    try:
        os.getcwd()
    except OSError as error:
        raise BackendUnavailableError(
            "PyTorch cannot be loaded, because the current folder does not exist any more; change to another folder"
        ) from error


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _require_a_folder()
    try:
        value = getattr(import_module(_LAZY[name]), name)
    except ImportError as error:
        if not any(library in str(error) for library in ("libGL", "libgthread")):
            raise
        raise ImportError(
            f"OpenCV cannot be loaded: {error}. Its package opencv-python needs libraries of a desktop, which servers "
            "and container images lack. Either 'pip uninstall opencv-python' and 'pip install opencv-python-headless', "
            "which is the same cv2 without them (README says how pip check agrees); or install the system's packages "
            "(Debian: libgl1 and libglib2.0-0)"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
