"""What all rooms stand on: errors, names and values, hashing, files, and the store of pictures and scores."""
