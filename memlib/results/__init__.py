"""Tables of scores, what follows from them, and figures."""
