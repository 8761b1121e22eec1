"""IPT itself: its network, first weights, checkpoints, official files, restoration in plain PyTorch."""
