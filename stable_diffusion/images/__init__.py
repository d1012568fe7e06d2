"""Read picture files into arrays, and write arrays to picture files. Needs no MLX."""
