"""Ways to choose the next tokens, one file each."""
