"""Toss login: users, their sessions with us, their tokens at Toss."""
