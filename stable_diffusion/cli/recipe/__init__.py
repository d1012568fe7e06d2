"""How a picture was made, written into it and read from it."""
