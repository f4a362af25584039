"""What capabilities cost and what they may cost."""
