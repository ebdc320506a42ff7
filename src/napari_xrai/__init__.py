"""X-ray single-particle imaging inside napari: from diffraction frames to a 3D structure, live."""

__version__ = "0.1.0"
