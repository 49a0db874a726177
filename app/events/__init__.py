"""What the partner's server is told, at least once."""
