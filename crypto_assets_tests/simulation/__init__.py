"""Tests of crypto_assets.simulation."""
