"""Programs of strangers: processes that the kernel shuts in run them, and others that they cannot reach grade them."""
