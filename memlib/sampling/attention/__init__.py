"""The words and places of a prompt's cross-attention: taps on the layers, records of the maps, positions of tokens."""
