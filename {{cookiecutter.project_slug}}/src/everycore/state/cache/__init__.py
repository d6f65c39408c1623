"""A cache that all workers share."""
