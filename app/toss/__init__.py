"""The vendor client: Toss's hosts, words, crypto and failures. Knows nothing of the web, SQL, Redis or settings."""
