"""Measurements and gates; run from the root of a checkout, for example ``python -m bench.gates.triton_kernels``."""
