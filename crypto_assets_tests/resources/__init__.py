"""Tests of crypto_assets.resources."""
