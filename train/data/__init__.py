"""What a step is trained on: photographs, degradations, random crops."""
