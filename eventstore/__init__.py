"""Schema, migrations and every SQL statement; knows neither gRPC nor Dramatiq."""
