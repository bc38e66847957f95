"""Packaging.  The root folder kernels/ installs as activefreq_engine.kernels, never as a top-level ``kernels``."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class CleanBuildPy(build_py):
    """Starts from an empty ``build/lib``: files left there by an earlier build would end up in the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


packages = (
    ["activefreq_engine"]
    + ["activefreq_engine." + p for p in find_packages("activefreq_engine")]
    + ["activefreq_engine.kernels"]
    + ["activefreq_engine.kernels." + p for p in find_packages("kernels")]
)

version = re.search(r'^__version__ = "([^"]+)"', (ROOT / "activefreq_engine/__init__.py").read_text("utf-8"), re.M)
if version is None:
    raise RuntimeError('activefreq_engine/__init__.py has no line __version__ = "..."')

# pip knows no "this or that": who installs us says which build of OpenCV the metadata shall require.
OPENCV = {"": "opencv-python", "headless": "opencv-python-headless"}
opencv = os.environ.get("ACTIVEFREQ_OPENCV", "")
if opencv not in OPENCV:
    raise SystemExit(f"ACTIVEFREQ_OPENCV is {opencv!r}; allowed are 'headless', or leave it unset")

# Lower bounds are the versions that constraints/oldest.txt names; a test compares the two.  CONTRIBUTING.md says what
# was run with them.
train = ["matplotlib>=3.8"]
evaluate = ["matplotlib>=3.8", "SimpleITK>=2.4"]
export = ["onnx>=1.17", "onnxscript>=0.7", "onnxruntime>=1.18"]
serve = ["fastapi>=0.128", "uvicorn>=0.30", "websockets>=15", "blosc2>=2.7.1"]  # blosc2: how nnInteractive packs arrays
bench = ["pytest>=8.4", "pytest-benchmark>=5", "matplotlib>=3.8", "scipy>=1.15"]
docs = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]

setup(
    name="activefreq-engine",
    version=version[1],
    description="Click-based interactive image segmentation (FreqFormer) that also says where to click next (AcSelect)",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    packages=packages,
    package_dir={"activefreq_engine": "activefreq_engine", "activefreq_engine.kernels": "kernels"},
    package_data={
        "activefreq_engine": [
            "py.typed",
            "weights/*.safetensors",
            "weights/*.md",
            "serve/page/*",
            "napari/napari.yaml",
            "train/mixes/*.json",
        ],
        "activefreq_engine.kernels": ["**/*.cu", "**/*.json", "**/*.md"],
    },
    include_package_data=False,
    cmdclass={"build_py": CleanBuildPy},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "safetensors>=0.4.3",  # weights, read without unpickling
        f"{OPENCV[opencv]}>=4.10.0.82",  # see README
        "pillow>=12",  # image files; older wheels have no AVIF and no ZSTD in TIFF, and known holes
        "typer>=0.20",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda12": ["triton>=3.6; sys_platform == 'linux'", "cupy-cuda12x>=14"],
        "cuda13": ["triton>=3.6; sys_platform == 'linux'", "cupy-cuda13x>=14"],
        "train": train,
        "eval": evaluate,
        "bench": bench,
        "peers": [*bench, "transformers>=4.48"],  # bench.peers.run: SAM's decoder and ViT-B, to compare with
        "export": export,
        "serve": serve,
        "slides": ["tifffile>=2024.1.30", "zarr>=2.18.3"],  # whole-slide images and large TIFF by region
        "medical": ["SimpleITK>=2.4"],  # DICOM, NIfTI and MetaImage in `activefreq serve`
        "napari": ["napari>=0.5", "qtpy>=2.4"],
        "docs": docs,
        "dev": [
            *sorted({*train, *evaluate, *bench, *export, *serve, *docs}),
            "httpx>=0.27",  # FastAPI's test client
            "hypothesis>=6.130.12",
            "mypy>=1.11",
            "nibabel>=5.2",  # reads the NIfTI labels that are written
            "nninteractive-client>=2.6",  # the real client of the protocol that we serve
            "nvidia-cuda-nvrtc-cu12>=12.4.99; sys_platform == 'linux'",  # compiles the CUDA sources offline
            "pycocotools>=2.0.8",  # the format that mask export must agree with
            "pydicom>=3",  # writes the DICOM files that reading is tested with
            "pytest-xdist>=3.6.1",  # runs the tests in a process for each core; older ones not in its main thread
            "pyvips[binary]>=3",  # writes the pictures that reading is tested with
            "shapely>=2.0.5",  # what polygons must be valid and of the right area by
            "tifffile>=2024.1.30",  # as pyvips
            "ruff>=0.6",
            "schemathesis>=4.30.1",  # makes requests from the server's OpenAPI document
            "scipy>=1.15",  # the definitions that region statistics and distances must agree with
            "zarr>=2.18.3",  # reads large TIFF by region
            "triton>=3.6; sys_platform == 'linux'",  # kernels run in its interpreter and compile offline, without a GPU
            "setuptools>=70.1",  # the packaging test builds a wheel without the network
        ],
    },
    entry_points={
        "console_scripts": ["activefreq = activefreq_engine.cli:main"],
        "pyinstaller40": ["hook-dirs = activefreq_engine.__pyinstaller:get_hook_dirs"],
        "napari.manifest": ["activefreq-engine = activefreq_engine.napari:napari.yaml"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
)
