"""What is refused or warned of: networks, passes, losses, options."""
