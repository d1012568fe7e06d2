"""What a program prints, and the signals that it gets."""
