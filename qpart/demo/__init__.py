"""What the demonstration and the tests plan: small networks, trained on images that a machine may already have."""
