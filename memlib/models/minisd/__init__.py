"""MiniSD's data and judges: pictures, captions, the corpus, prompt sets, and the metrics trained for it."""
