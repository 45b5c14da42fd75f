"""Unit, integration and end-to-end tests, and the kit they share."""
