"""``python -m napari_xrai``: the same as ``napari-xrai``."""

from .cli import main

if __name__ == "__main__":
    main()
