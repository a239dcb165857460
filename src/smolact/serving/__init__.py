"""The policy server: sessions, authentication, limits, the request queue and the inference worker."""
