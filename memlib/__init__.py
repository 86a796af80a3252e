"""Helpers of an executable companion to research on memorization in text-to-image diffusion."""

import warnings

# diffusers' progress bars ask for notebook widgets at import; the notebooks show none.
warnings.filterwarnings("ignore", message="IProgress not found")
