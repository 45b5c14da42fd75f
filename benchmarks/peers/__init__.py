"""Other ways to do the same job, run on the same machine beside the service."""
