"""Fine-tuning, and the training of MiniSD: a leaf, imported by nothing but its own commands."""
