"""Pictures from text states and seeds: guidance, the one denoising loop, attention, and what the first step tells."""
