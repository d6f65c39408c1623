"""A cache in Redis that all workers share."""
