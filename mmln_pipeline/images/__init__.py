"""Brain images: reading and checking them, bringing them onto a grid, their brain and brightness."""
