"""What Toss calls us about: authenticated, recorded once, then handled."""
