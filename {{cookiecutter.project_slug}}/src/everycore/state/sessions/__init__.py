"""Sessions of visitors: signed cookies in the browser, data in Redis."""
