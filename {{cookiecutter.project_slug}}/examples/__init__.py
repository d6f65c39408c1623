"""Apps that know nothing of the cluster, and run on it unchanged."""
