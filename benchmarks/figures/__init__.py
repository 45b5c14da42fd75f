"""What is measured of the service, by subject."""
