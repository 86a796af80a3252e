"""``memlib report``: what anybody's model reproduces, what helps, and which detector tells, as one HTML file."""
