"""Kernels in C for what decoding does with few positions, where calling PyTorch's takes as long as they do."""
