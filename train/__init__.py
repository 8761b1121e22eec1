"""Training room: photographs become a checkpoint. The model, its data, training runs, and CNNs to compare with."""
