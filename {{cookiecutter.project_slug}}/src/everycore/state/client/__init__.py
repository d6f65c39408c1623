"""One connection to Redis for each worker, shared by all of its requests."""
