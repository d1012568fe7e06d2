"""What the program prints, and the signals that it gets."""
