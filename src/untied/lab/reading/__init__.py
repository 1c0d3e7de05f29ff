"""What comes from outside, read at the edge: words, fields, import paths, addresses."""
