"""Apps that know nothing of everycore, and run on it unchanged."""
