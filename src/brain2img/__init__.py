"""brain2img: read images, and later words, out of recordings of human brain activity."""

__version__ = "0.1.0"
