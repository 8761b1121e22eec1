"""Training runs: recipe, loop, losses, validation, the commands that start them."""
