"""Training the second miniature, its family, and measuring its premises: commands, imported by nothing else."""
