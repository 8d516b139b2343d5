"""What one forward pass leaves behind."""
