"""Physical limits: what the same machine does when nothing of the service is in the way."""
