"""Training room: the IPT model, its tasks, checkpoints, degradations, tiling and plain PyTorch inference."""
