"""Training data: photographs, degradations, random crops."""
