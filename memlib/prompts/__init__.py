"""Sets of prompts, their text states, and edits of these."""
