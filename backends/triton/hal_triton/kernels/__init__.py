"""The kernels, in Triton's language; the modules beside this package launch them."""
