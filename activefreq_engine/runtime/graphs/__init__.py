"""Plans replayed as CUDA graphs: `contexts.py` has the buffers and the work on them, `cuda.py` the capture."""
