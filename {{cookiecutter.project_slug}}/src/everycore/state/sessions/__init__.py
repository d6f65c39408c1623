"""Sessions: a signed id in a cookie, the data in Redis."""
