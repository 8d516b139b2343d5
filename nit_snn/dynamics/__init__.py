"""What membranes do in T steps: the equations, and who carries them out."""
