"""PyInstaller's hook for this package."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

datas = collect_data_files("activefreq_engine") + copy_metadata("activefreq-engine")  # weights, cards, CUDA sources
hiddenimports = collect_submodules("activefreq_engine.kernels")  # which are found by looking into their folder
# Triton compiles the sources of its kernels, and verdicts about kernels and plans name the sources they are about.
module_collection_mode = {"activefreq_engine": "pyz+py"}
