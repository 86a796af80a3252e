"""The models under study, by name: where they lie, what they are made of, and MiniSD's pictures, captions and judges."""
