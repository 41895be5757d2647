"""What the experiment costs when runs are packed on one accelerator."""
