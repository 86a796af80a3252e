"""The second miniature: fewer things on a grid, one language of captions and titles, duplicates as rare as in the web."""
