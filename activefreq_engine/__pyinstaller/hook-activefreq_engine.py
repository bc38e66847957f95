"""PyInstaller's hook for this package."""

from importlib.metadata import PackageNotFoundError

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

from activefreq_engine.cli import PACKAGES

datas = collect_data_files("activefreq_engine") + copy_metadata("activefreq-engine")  # weights, cards, CUDA sources
for name in [name for names in PACKAGES.values() for name in names]:  # whose versions are asked for by metadata
    try:
        datas += copy_metadata(name)
    except PackageNotFoundError:
        continue
hiddenimports = collect_submodules("activefreq_engine.kernels")  # which are found by looking into their folder
# Triton compiles the sources of its kernels, and verdicts about kernels and plans name the sources they are about.
module_collection_mode = {"activefreq_engine": "pyz+py"}
