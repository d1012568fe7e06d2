"""Between picture files and arrays. Needs Pillow and NumPy, but not MLX."""
