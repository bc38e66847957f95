"""Do the kernels compile for real GPUs, within their limits?"""
