"""A stateful, strict Toss for development and tests. Written from the reference, never from `app`."""
