"""MiniSD, a Stable Diffusion in miniature: its pictures and captions, its training and judges, and what was measured on it."""
