"""The physics and the reconstruction: torch and numpy, no files, no windows."""
