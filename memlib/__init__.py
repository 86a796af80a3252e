"""Helpers of an executable companion to research on memorization in text-to-image diffusion."""

import warnings
from typing import Any

# diffusers' progress bars ask for notebook widgets at import; the notebooks show none.
warnings.filterwarnings("ignore", message="IProgress not found")


def mitigate(pipe: Any, name: Any, **params: Any) -> Any:
    """Put a mitigation in place on a diffusers pipeline: see `memlib.mitigations.pipeline.mitigate`."""
    from memlib.mitigations.pipeline import mitigate as put_in_place  # torch is loaded at the first call, not here

    return put_in_place(pipe, name, **params)
