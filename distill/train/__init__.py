"""Training: records become token ids and a loss mask, and a student learns from them."""
