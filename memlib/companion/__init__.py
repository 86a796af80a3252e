"""Runs notebooks, builds the site, measures costs, checks models: a leaf."""
